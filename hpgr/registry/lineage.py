"""Where a result comes from: commit, data, stage inputs, environment - each by its hash.

Reads git, `data.dvc`, `dvc.lock` and `requirements.lock`; what is absent is said to be absent
rather than left out, so that a tag never means two things. Writes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from hpgr.config import PARAMS_FILE
from hpgr.masking import masked
from hpgr.runtime import read_json, sha256_file
from hpgr.workspace import HERE

ABSENT = "absent"
PINS = (PARAMS_FILE, Path("data.dvc"), Path("dvc.lock"))  # kept with a version's run, whole


def run_tags() -> dict[str, str]:
    """Tags of the parent run: git commit and state, data, workspace state, environment.

    `git.dirty` leaves out the files that are kept with the run. `dvc.changed` lists the stages
    whose recorded inputs or outputs differ from the workspace: what was trained by hand, past DVC,
    does not pass for what dvc.lock records.
    """
    commit = _output("git", "rev-parse", "HEAD")
    changes = _output("git", "status", "--porcelain", "--", ".", *(f":!{path}" for path in PINS))
    return {
        "git.commit": commit or ABSENT,
        "git.dirty": ABSENT if changes is None else str(bool(changes)).lower(),
        "dvc.data": _data_hash(),
        "dvc.changed": _changed_stages(),
        "environment.lock": _file_hash(Path("requirements.lock")),
        "base.version": started_from(),
    }


def started_from() -> str:
    """Version whose weights the artifacts' training started from; absent after one from nothing."""
    config = HERE.output("finetune") / "config.json"
    base = read_json(config).get("base") if config.is_file() else None
    return str(base["version"]) if base else ABSENT


def stage_tags(stage: str) -> dict[str, str]:
    """Tags of a stage's run: the DVC hash of every input and output that dvc.lock records."""
    recorded = (_yaml(Path("dvc.lock")).get("stages") or {}).get(stage)
    if recorded is None:
        return {"dvc.lock": ABSENT}
    tags: dict[str, str] = {}
    for kind in ("deps", "outs"):
        for entry in recorded.get(kind) or []:
            name = masked(f"dvc.{kind}.{entry['path']}")
            tags[name] = str(entry.get(entry.get("hash", "md5"), ABSENT))
    return tags


def _data_hash() -> str:
    outs = _yaml(Path("data.dvc")).get("outs") or [{}]
    return str(outs[0].get(outs[0].get("hash", "md5"), ABSENT))


def _changed_stages() -> str:
    status = _output(sys.executable, "-m", "dvc", "status", "--json")
    if status is None:
        return ABSENT
    return ", ".join(sorted(json.loads(status))) or "none"


def _file_hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ABSENT


def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def _output(*command: str) -> str | None:
    """What a command prints, stripped; None if it is missing or fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
