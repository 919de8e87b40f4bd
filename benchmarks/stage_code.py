"""Digest of the code of each stage, so that a result tells by which code it was made.

Needs PyYAML alone. Reads the project's dvc.yaml and the files that it names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

import hpgr
from hpgr.workspace import STAGES


def code_digests() -> dict[str, str]:
    """Stage to a hash of the files that it imports, which the project's dvc.yaml lists."""
    root = Path(hpgr.__file__).parents[1]
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = {}
    for stage in STAGES:
        digest = hashlib.sha256()
        for file in sorted(dep for dep in stages[stage]["deps"] if dep.startswith("hpgr/")):
            digest.update(f"{file}\0".encode() + (root / file).read_bytes() + b"\0")
        found[stage] = digest.hexdigest()[:16]
    return found
