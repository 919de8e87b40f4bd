"""A small project under `host.services up`, and what the drills ask of it.

The flows, the worker, the servers and the registration are the project's own; only dvc.yaml is
another one, with stages of a second: `first`, `slow` (slow.py) and `last`, which puts the artifacts
of a small untrained network in place, so that the run can register it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from evaluation_log import random_log, write_arrays
from params_text import params_text
from prefect.client.orchestration import SyncPrefectClient
from registry_project import METRICS, write_network, write_tables
from slow import read_step
from waiting import until

from host.access import FILE, for_server
from hpgr.config import load_config
from hpgr.runtime import TELEMETRY_OFF, write_json

ROOT = Path(__file__).parents[2]
ASK_S = 0.4  # between two questions to a server that works on the same cores
FILES = ("prefect.yaml", "prefect.toml", "requirements.lock", "params.yaml", ".gitignore")
STAGES = {
    "first": {"cmd": "cp data/log.txt artifacts/first.txt", "deps": ["data"]},
    "slow": {"cmd": "exec python slow.py", "deps": ["artifacts/first.txt", "slow.py", "turn.txt"]},
    "last": {"cmd": "cp -r prepared/. artifacts", "deps": ["artifacts/slow.txt", "prepared"]},
}
OUTS = {
    "first": ["artifacts/first.txt"],
    "slow": ["artifacts/slow.txt"],
    "last": [f"artifacts/{name}" for name in ("sessions", "finetune", "evaluation")],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_project(folder: Path) -> None:
    """The project's code and settings, small stages, and a repository around them."""
    for name in ("hpgr", "flows", "host"):
        shutil.copytree(ROOT / name, folder / name)  # times and compiled files too
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "mlflow").mkdir()
    shutil.copy(ROOT / "mlflow/model_card.md.j2", folder / "mlflow")
    shutil.copy(Path(__file__).with_name("slow.py"), folder)
    text = params_text("smoke")
    text, moved = re.subn(r"^  port: \d+\b", f"  port: {free_port()}", text, flags=re.MULTILINE)
    assert moved == 1
    text = text.replace("path: data/ml-1m ", "path: data/log.txt ")  # there: nothing to fetch
    (folder / "params.yaml").write_text(text)
    stages = {name: {**stage, "outs": OUTS[name]} for name, stage in STAGES.items()}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    for name in ("data", "artifacts"):
        (folder / name).mkdir()
    (folder / "data/log.txt").write_text("events")
    (folder / "turn.txt").write_text("0")
    prepared, log = folder / "prepared", random_log(0)
    write_arrays(log, prepared / "sessions/arrays")
    write_tables(prepared / "sessions", log)
    write_network(prepared / "finetune", log, load_config(folder / "params.yaml"))
    write_json(prepared / "evaluation/metrics.json", METRICS)
    (prepared / "evaluation/report.html").write_text("<html>report</html>")


@dataclass
class Project:
    """A project folder and its servers."""

    folder: Path
    prefect_port: int
    mlflow_port: int
    current: Any = None  # the run that works now
    string: str | None = None  # Prefect's, where `make up` does not make it
    clients: dict[str | None, SyncPrefectClient] = field(default_factory=dict)  # by the string

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def environment(self) -> dict[str, str]:
        ours = ("PREFECT", "MLFLOW", "HPGR")
        known = for_server(self.string, "") if self.string else {}
        return {
            **{setting.name: value for setting, value in known.items()},
            **{k: v for k, v in os.environ.items() if not k.startswith(ours)},
            **TELEMETRY_OFF,
            "PYTHONPATH": str(self.folder),
            "PREFECT_HOME": str(self.folder / ".prefect"),
            "HPGR_PREFECT_PORT": str(self.prefect_port),
            "HPGR_MLFLOW_PORT": str(self.mlflow_port),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            # Every client of Prefect's reads all certificates, dozens a command; http needs none.
            "PREFECT_API_SSL_CERT_FILE": str(Path(__file__).with_name("one_root.pem")),
            # Shorter waits: until the worker looks, and until a waiting run counts as late.
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "5",
            "SHELL": "/usr/sbin/nologin",  # as of a service's user: stages must not start with it
        }

    def call(self, *command: str, check: bool = True, **environment: str):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done

    def services(self, command: str, check: bool = True, **environment: str):
        """`host.services`, with a proxy set that does not answer: none may be asked for these."""
        proxy = {"http_proxy": f"http://127.0.0.1:{free_port()}"}
        return self.call(
            sys.executable, "-m", "host.services", command, check=check, **proxy, **environment
        )

    @property
    def client(self) -> nullcontext[SyncPrefectClient]:
        """A client of this project's server, whatever the test process is set to.

        One for all questions: each new one reads all certificates of the machine.
        """
        made = self.folder / ".prefect" / FILE
        string = self.string or (made.read_text() if made.is_file() else None)
        if string not in self.clients:
            self.clients[string] = SyncPrefectClient(self.api, auth_string=string).__enter__()
        return nullcontext(self.clients[string])

    def processes(self) -> list[psutil.Process]:
        """Everything that was started in this folder and lives."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == self.folder:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def process(self, *words: str) -> psutil.Process | None:
        """The oldest process of this folder whose command line holds all words."""
        matching = [p for p in self.processes() if all(w in " ".join(_cmdline(p)) for w in words)]
        return min(matching, key=lambda p: p.pid, default=None)

    def run_processes(self) -> list[psutil.Process]:
        """The processes of a flow run: the flow's own process, dvc, the stage."""
        words = ("prefect.engine", "_workspace_supervisor", "-m dvc", "slow.py")
        return [p for p in self.processes() if any(w in " ".join(_cmdline(p)) for w in words)]

    def answers(self, url: str | None = None) -> bool:
        """Return True if the Prefect server, or the server that `url` names, answers."""
        try:
            url = url or f"{self.api}/health"
            return httpx.get(url, timeout=5, trust_env=False, verify=False).is_success
        except httpx.HTTPError:
            return False

    def start(self, **overrides: Any):
        """Ask for a run of train/local; returns the flow run."""
        parameters = {"overrides": {k.replace("__", "."): v for k, v in overrides.items()}}
        with self.client as client:
            deployment = client.read_deployment_by_name("train/local")
            return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def state(self, run):
        with self.client as client:
            return client.read_flow_run(run.id).state

    def ends(self, run, name: str):
        """Wait for the run's final state, which must be `name`."""

        def final():
            state = self.state(run)
            return state if state is not None and state.is_final() else None

        state = until(final, f"run ends {name}", every_s=ASK_S)
        assert state.name == name, f"{state.name}: {state.message}\n{self.log(run)}"
        return state

    def log(self, run) -> str:
        """Messages of the run's log, one a line."""
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        with self.client as client:
            wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
            return "\n".join(entry.message for entry in client.read_logs(wanted, limit=200))

    def begun(self, run) -> int:
        """Wait until the run's log says at which step the stage began."""
        found = until(
            lambda: re.findall(r"begins at step (\d+)", self.log(run)),
            "the stage begins",
            every_s=ASK_S,
        )
        return int(found[-1])

    def is_working(self, run) -> bool:
        return self.state(run).is_running() and bool(self.process("slow.py"))

    def registered(self) -> dict[str, Any]:
        return json.loads((self.folder / "artifacts/registered.json").read_text())

    def new_turn(self) -> None:
        """Make `slow` outdated; it ends by itself unless `hold` is there."""
        (self.folder / "turn.txt").write_text(str(time.time_ns()))

    def release(self) -> None:
        (self.folder / "hold").unlink(missing_ok=True)

    def step(self) -> int:
        """Step of the stage's checkpoint of this turn; 0 without one."""
        turn = (self.folder / "turn.txt").read_text()
        return read_step(self.folder / f"checkpoints/slow-{turn}/checkpoint.safetensors")

    def works(self) -> int:
        """Wait until the stage has written a checkpoint; returns its step."""
        return until(self.step, "the stage works")

    def leftovers(self) -> list[str]:
        """Half-written files, and entries of DVC's lock that no living process holds."""
        kept = (".gitignore", ".lock")  # locks are flock's: never stale
        hidden = (self.folder / "artifacts").rglob(".*")
        found = [str(path) for path in hidden if not path.name.endswith(kept)]
        rwlock = self.folder / ".dvc/tmp/rwlock"
        holders = re.findall(r'"pid": (\d+)', rwlock.read_text()) if rwlock.is_file() else []
        return found + [pid for pid in holders if not psutil.pid_exists(int(pid))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def make_project(folder: Path, database: Path | None = None) -> Project:
    """A project whose Prefect begins with a copy of `database`, which is made in seconds."""
    project = Project(folder, free_port(), free_port())
    write_project(folder)
    if database is not None:
        (folder / ".prefect").mkdir()
        shutil.copy(database, folder / ".prefect")
    dvc = (sys.executable, "-m", "dvc")
    project.call("git", "init", "-q")
    project.call(*dvc, "init", "-q")
    project.call(*dvc, "add", "-q", "data")
    project.call("git", "add", "-A")
    project.call("git", "commit", "-qm", "project")
    return project
