"""What the drills share: a project in a folder, real commands in it, and what they leave behind.

A workspace is a clone of this project with a small log of its own, so small that a stage takes
seconds. Commands run as a user runs them; a driver is Python that patches one function, to break
something at a chosen moment, and then runs the stage as the command does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from hpgr.runtime import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
HPGR = (sys.executable, "-m", "hpgr.cli")
DVC = (sys.executable, "-m", "dvc")
TIMEOUT_S = 240
STAGES = ("validate", "sessionize", "pretrain", "finetune", "evaluate")
START = 1_600_000_000


@dataclass(frozen=True)
class Done:
    """A command that ended; `peak_memory` is that of the process itself, bytes."""

    returncode: int
    stdout: str
    stderr: str
    peak_memory: int

    @property
    def told(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr


def environment(root: Path = ROOT) -> dict[str, str]:
    """As a user's, with the code below `root` and no service of this machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "DVC"))}
    shims = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    one_core = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**kept, **TELEMETRY_OFF, **one_core, "PYTHONPATH": str(root), "PATH": shims}


def start(*command: str, cwd: Path, root: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
    """The running command; its output goes to the files that `end` reads."""
    out, err = (tempfile.NamedTemporaryFile("w+", suffix=".txt") for _ in range(2))  # noqa: SIM115
    process = subprocess.Popen(
        command, cwd=cwd, stdout=out, stderr=err, text=True, env=environment(root), **options
    )
    process.output_files = out, err  # type: ignore[attr-defined]
    return process


def end(process: subprocess.Popen[str]) -> Done:
    """Wait for a command that `start` began; one that does not end is killed and fails."""
    watch = time.monotonic() + TIMEOUT_S
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > watch:
            process.kill()
            raise AssertionError(f"{process.args} did not end: {_text(process)}")
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    out, err = _text(process)
    return Done(process.returncode, out, err, usage.ru_maxrss * 1024)


def _text(process: subprocess.Popen[str]) -> tuple[str, str]:
    texts = []
    for file in process.output_files:  # type: ignore[attr-defined]
        texts.append(Path(file.name).read_text(errors="replace"))
        file.close()
    return texts[0], texts[1]


def run(*command: str, cwd: Path, **options: Any) -> Done:
    """`command`, to its end."""
    return end(start(*command, cwd=cwd, **options))


def hpgr(*arguments: str, cwd: Path, **options: Any) -> Done:
    """`hpgr ...` as a user types it."""
    return run(*HPGR, *arguments, cwd=cwd, **options)


def no_traceback(text: str) -> bool:
    """Whether nothing in `text` is a stack of calls."""
    return "Traceback" not in text and 'File "' not in text


def write_params(folder: Path, **sections: Any) -> None:
    """The project's params.yaml, profile smoke, with some keys of `sections` changed."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["profile"] = "smoke"
    for section, values in sections.items():
        columns = values.pop("columns", {})
        params[section] |= values
        if columns:
            params[section]["columns"] |= columns
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
