"""DVC's read-write lock after a kill: entries of processes that are gone are taken out.

DVC does so itself, unless another process has got the dead one's number since - likely after a
reboot, certain in a restarted container - and then calls the workspace busy for good. The command
line that DVC notes beside the number tells them apart. Reads and writes .dvc/tmp/rwlock.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil

from hpgr.runtime import write_json

RWLOCK = Path(".dvc/tmp/rwlock")


def drop_stale_locks(path: Path = RWLOCK) -> int:
    """Remove the entries whose process does not live any more; returns how many there were."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):  # none, or damaged: DVC has a message for that
        return 0
    read = {name: [i for i in infos if _lives(i)] for name, infos in found.get("read", {}).items()}
    write = {name: info for name, info in found.get("write", {}).items() if _lives(info)}
    kept = {"read": {name: infos for name, infos in read.items() if infos}, "write": write}
    stale = _count(found) - _count(kept)
    if stale:
        write_json(path, kept)
    return stale


def _lives(info: dict[str, Any]) -> bool:
    arguments = str(info["cmd"]).partition(" ")[2]  # the first word is a script's path
    try:
        cmdline = " ".join(psutil.Process(int(info["pid"])).cmdline())
        return "dvc" in cmdline and cmdline.endswith(arguments)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _count(lock: dict[str, Any]) -> int:
    return sum(map(len, lock.get("read", {}).values())) + len(lock.get("write", {}))
