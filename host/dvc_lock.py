"""DVC's read-write lock after a kill: remove the entries of processes that are gone.

DVC does so itself, unless another process has the dead one's number by now - likely after a
reboot, certain in a restarted container - and then calls the workspace busy for good. The command
line that DVC notes beside the number tells them apart. DVC rewrites the file in place; one that is
cut off blocks every DVC command and counts as empty here. Reads and writes .dvc/tmp/rwlock.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from host.settings import DVC_RWLOCK
from hpgr.runtime import write_json


def drop_stale_locks(path: Path = DVC_RWLOCK) -> int:
    """Remove the entries whose process has ended; return how many there were.

    Nothing happens while a DVC command is busy with the file: the next call removes them.
    """
    if not path.exists():
        return 0
    from dvc.config import Config
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_LOCK

    # DVC's own guard: without it what a command writes meanwhile would be lost.
    guard = make_lock(
        str(path.with_name(RWLOCK_LOCK)),
        tmp_dir=str(path.parent),
        hardlink_lock=Config.from_cwd()["core"].get("hardlink_lock", False),
    )
    with suppress(LockError), guard:
        return _drop(path)
    return 0


def _drop(path: Path) -> int:
    found, damaged = _read(path)
    read = {name: [i for i in infos if _lives(i)] for name, infos in found["read"].items()}
    write = {name: info for name, info in found["write"].items() if _lives(info)}
    kept = {"read": {name: infos for name, infos in read.items() if infos}, "write": write}
    stale = _count(found) - _count(kept)
    if stale or damaged:
        write_json(path, kept)
    return stale


def _read(path: Path) -> tuple[dict[str, Any], bool]:
    """The lock's entries, none of a file that DVC cannot read; and whether it is such a file."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    try:
        return SCHEMA(json.loads(path.read_bytes())), False
    except FileNotFoundError:
        return SCHEMA({}), False
    except (ValueError, Invalid):
        return SCHEMA({}), True


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
    return sum(map(len, lock["read"].values())) + len(lock["write"])
