"""Shared by the drills: a project in a folder, real commands in it, and what they leave behind.

The project is this one's files with a log so small that a stage takes seconds. Commands run as a
user runs them. A driver patches one function, to break something at a chosen moment, and then is
the command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from params_text import params_of
from working_tree import copy_working_tree

from hpgr.runtime import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
HPGR = (sys.executable, "-m", "hpgr.cli")
DVC = (sys.executable, "-m", "dvc")
DEADLINE_S = 240
STAGES = ("validate", "sessionize", "pretrain", "finetune", "evaluate")
START = 1_600_000_000
WEIGHTS = "model.safetensors"
LEFT_OUT = ("resources.csv", "metrics.json", "report.html", "index.html")


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr


class Command:
    """A running command; its output goes to files, so that nobody has to read along."""

    def __init__(self, *command: str, cwd: Path, **options: Any) -> None:
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=self._files[0],
            stderr=self._files[1],
            stdin=subprocess.DEVNULL,
            env=environment(cwd),
            **options,
        )

    def running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> Done:
        """Wait for it; one that does not end is killed, and the test fails."""
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.process.args} did not end: {self._texts()}") from None
        return Done(self.process.returncode, *self._texts())

    def _texts(self) -> tuple[str, str]:
        for file in self._files:
            file.seek(0)
        out, err = (file.read() for file in self._files)
        return out, err


def environment(folder: Path) -> dict[str, str]:
    """As a user's, with the project in `folder`, if it is one, and no service of this machine.

    The shell is the plain one, as under cron and in containers: DVC starts stages with it.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    code = folder if (folder / "hpgr").is_dir() else ROOT
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    one_core = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    places = {"PYTHONPATH": str(code.absolute()), "PATH": path, "SHELL": "/bin/sh"}
    return {**kept, **TELEMETRY_OFF, **one_core, **places}


def run(*command: str, cwd: Path, **options: Any) -> Done:
    """`command`, to its end."""
    return Command(*command, cwd=cwd, **options).end()


def hpgr(*arguments: str, cwd: Path, **options: Any) -> Done:
    """`hpgr ...` as a user types it."""
    return run(*HPGR, *arguments, cwd=cwd, **options)


def dvc(*arguments: str, cwd: Path) -> Done:
    """`dvc ...` as a user types it."""
    return run(*DVC, *arguments, cwd=cwd)


def driven(stage: str, patch: str, cwd: Path) -> Done:
    """`hpgr STAGE` in a process that first runs `patch`, which may use COUNT, os, signal, time."""
    code = f"import os, signal, sys, time\n{patch}\nfrom hpgr.cli import main\nmain()"
    return run(sys.executable, "-c", code, stage, cwd=cwd)


def no_traceback(text: str) -> bool:
    """Return True if nothing in `text` is a stack of calls."""
    return "Traceback" not in text and '  File "' not in text


def one_message(done: Done) -> str:
    """The message of a command that ended with a user's mistake, and with nothing else."""
    assert done.returncode == 2, done.output[-3000:]
    assert no_traceback(done.output), done.output[-3000:]
    assert done.stderr.count("error: ") == 1
    return done.stderr[done.stderr.index("error: ") :]


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders of writers that are gone."""
    places = [folder / "artifacts", folder / "artifacts/accepted", *folder.glob("checkpoints/*")]
    found = [path for place in places if place.is_dir() for path in place.glob(".*")]
    return [str(path) for path in found if path.suffix != ".lock"]  # held by flock, never stale


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file, but for what differs from run to run, timings, or file system, order."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in LEFT_OUT
    }


def write_params(folder: Path, **sections: dict[str, Any]) -> None:
    """The project's params.yaml, profile smoke, with some keys of `sections` changed."""
    params = params_of("smoke")
    for section, values in sections.items():
        columns = values.pop("columns", {})
        params[section] |= values
        if columns:
            params[section]["columns"] |= columns
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def small_params(folder: Path, **sections: dict[str, Any]) -> None:
    """Parameters under which every stage takes a second, and training saves at every step."""
    training = {"batch_tokens": 128, "checkpoint_steps": 1}
    base: dict[str, dict[str, Any]] = {  # 15 steps: three epochs
        "data": {"path": "data/own", "format": "table", "interactions": "log.csv"},
        "pretrain": {**training, "steps": 15, "validate_steps": 5},
        "finetune": {
            **training, "steps": 15, "warm_steps": 15, "validate_steps": 5,
            "validation_queries": 20,
        },
        "evaluate": {"bootstrap_samples": 50, "report_users": 1, "cutoffs": [10, 50]},
    }  # fmt: skip
    names = {*base, *sections}
    write_params(folder, **{n: {**base.get(n, {}), **sections.get(n, {})} for n in names})


def make_project(folder: Path) -> None:
    """This project's files in a repository of their own, with a small log that data.dvc pins."""
    copy_working_tree(folder, without=("dvc.lock", "data.dvc"))
    small_params(folder)
    random = np.random.default_rng(0)
    rows = [
        f"u{user},i{item},{START + int(time_s)}"
        for user in range(60)
        for item, time_s in zip(
            (user + np.cumsum(random.integers(1, 4, 12))) % 40,
            np.cumsum(random.integers(1, 4000, 12)) + 1000 * user,
            strict=True,
        )
    ]
    (folder / "data/own").mkdir(parents=True)
    (folder / "data/own/log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows, ""]))
    for command in (("git", "init", "-q"), (*DVC, "add", "-q", "data")):
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.output


def copy(project: Path, target: Path) -> Path:
    """An independent copy of a project, DVC's cache and all."""
    shutil.copytree(project, target, symlinks=True, dirs_exist_ok=True)
    return target
