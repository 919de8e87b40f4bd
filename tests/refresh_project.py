"""A project for refreshing: this working tree's code, the stages up to sessionize, real DVC.

Training and registration are left out: `DRIVER` puts the vocabulary of the last run below base/, as
filling it from the registry does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from hpgr.runtime import TELEMETRY_OFF

ROOT = Path(__file__).parents[1]
DVC = (sys.executable, "-m", "dvc")
DRIVER = """
import json, shutil, sys
from pathlib import Path
from flows import refresh
from flows import dvc_stages as stages
from flows.dvc_graph import stage_order
from hpgr.intake import acceptance
from hpgr.runtime import write_json
from hpgr.workspace import HERE

def fill_base():
    for name in ("items", "actions", "categories"):
        shutil.copyfile(f"artifacts/sessions/{name}.parquet", HERE.base / f"{name}.parquet")
    shutil.copyfile("artifacts/sessions/trained.npy", HERE.base / "trained.npy")
    write_json(HERE.base / "base.json", {"version": 1})

def pipeline():
    stages.check_data()
    return {s: stages.reproduce(s) for s in stage_order()}

refresh.start_from_champion.fn, refresh.pipeline = fill_base, pipeline
refresh.require_champion.fn = lambda: None
outcomes = []
for step in json.loads(sys.argv[1]):
    if step == "die while taking in":
        cfg = refresh.load_config()
        acceptance.begin(cfg.data, refresh.examine(cfg, Path("one.csv"), evidence=False))
        continue
    try:
        outcomes.append(refresh.refresh(**(step if isinstance(step, dict) else {"incoming": step})))
    except Exception as error:
        outcomes.append(str(error))
    outcomes[-1] = [outcomes[-1], Path("data.dvc").read_text()]
Path("outcomes.json").write_text(json.dumps(outcomes))
"""


def make_project(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Code, graph and parameters, these with `changes` by section; data and git come after."""
    for name in ("hpgr", "flows", "host"):
        shutil.copytree(ROOT / name, folder / name)  # times and compiled files too
    shutil.copyfile(ROOT / "prefect.toml", folder / "prefect.toml")
    (folder / "base").mkdir()
    (folder / "base/.gitignore").write_text("*\n")
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stages = {name: graph["stages"][name] for name in ("validate", "sessionize")}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in changes.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "driver.py").write_text(DRIVER)


def reproduce(folder: Path) -> None:
    """Pin data/ and run both stages."""
    run(folder, "git", "init", "-q")
    run(folder, *DVC, "init", "-q")
    run(folder, *DVC, "add", "-q", "data")
    run(folder, *DVC, "repro", "-q")


def run(folder: Path, *command: str, code: int = 0) -> str:
    """The output of the command; to a file, since a server that outlives it would hold a pipe."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))},
        **TELEMETRY_OFF,
        "PYTHONPATH": str(folder),
        "PREFECT_HOME": str(folder / ".prefect"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = folder / "output.txt"
    with log.open("w") as file:
        done = subprocess.run(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, check=False, env=environment
        )
    assert done.returncode == code, f"{command}\n{log.read_text()[-6000:]}"
    return log.read_text()


def drive(folder: Path, *steps: str | dict[str, Any]) -> tuple[list, str]:
    """Outcome of each step (a batch, or the flow's parameters), with data.dvc after it; the log."""
    log = run(folder, sys.executable, "driver.py", json.dumps(steps))
    return json.loads((folder / "outcomes.json").read_text()), log


def items(project: Path) -> list[str]:
    return pq.read_table(project / "artifacts/sessions/items.parquet")["item_id"].to_pylist()
