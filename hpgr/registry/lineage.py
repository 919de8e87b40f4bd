"""Hashes that identify a result's origin: commit, data, stage inputs, environment.

Reads git, `data.dvc`, `dvc.lock` and `requirements.lock`. The tag of a missing source has the value
`absent`, so that a missing tag has no meaning of its own. Writes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from hpgr.masking import masked
from hpgr.runtime import read_json, sha256_file
from hpgr.workspace import HERE, Workspace

ABSENT = "absent"
ENVIRONMENT = Path("requirements.lock")  # the project's, for every workspace


def pins(workspace: Workspace = HERE) -> tuple[Path, ...]:
    """Return the files that are kept whole with a version's run."""
    return workspace.params, workspace.data_pin, workspace.dvc_lock


def run_tags(workspace: Workspace = HERE) -> dict[str, str]:
    """Return the parent run's tags: git commit and state, data, workspace state, environment.

    `git.dirty` ignores the files that are kept with the run. `dvc.changed` lists the stages whose
    recorded inputs or outputs differ from the workspace, as after a training by hand without DVC.
    """
    root, apart = workspace.root, [f":!{path.name}" for path in pins(workspace)]
    commit = _output(root, "git", "rev-parse", "HEAD")
    changes = _output(root, "git", "status", "--porcelain", "--", ".", *apart)
    return {
        "git.commit": commit or ABSENT,
        "git.dirty": ABSENT if changes is None else str(bool(changes)).lower(),
        "dvc.data": _data_hash(workspace.data_pin),
        "dvc.changed": _changed_stages(root),
        "environment.lock": sha256_file(ENVIRONMENT) if ENVIRONMENT.is_file() else ABSENT,
        "base.version": started_from(workspace),
    }


def started_from(workspace: Workspace = HERE) -> str:
    """Return the version that training started from, or ABSENT if it started from nothing."""
    config = workspace.finetuned / "config.json"
    base = read_json(config).get("base") if config.is_file() else None
    return str(base["version"]) if base else ABSENT


def stage_tags(stage: str, workspace: Workspace = HERE) -> dict[str, str]:
    """Return a stage's tags: the DVC hash of every input and output that dvc.lock records."""
    recorded = (_yaml(workspace.dvc_lock).get("stages") or {}).get(stage)
    if recorded is None:
        return {"dvc.lock": ABSENT}
    tags: dict[str, str] = {}
    for kind in ("deps", "outs"):
        for entry in recorded.get(kind) or []:
            name = masked(f"dvc.{kind}.{entry['path']}")
            tags[name] = str(entry.get(entry.get("hash", "md5"), ABSENT))
    return tags


def _data_hash(pin: Path) -> str:
    outs = _yaml(pin).get("outs") or [{}]
    return str(outs[0].get(outs[0].get("hash", "md5"), ABSENT))


def _changed_stages(root: Path) -> str:
    status = _output(root, sys.executable, "-m", "dvc", "status", "--json")
    if status is None:
        return ABSENT
    return ", ".join(sorted(json.loads(status))) or "none"


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def _output(root: Path, *command: str) -> str | None:
    """Return what a command prints in `root`, stripped; None if it is missing or fails."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            cwd=root,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
