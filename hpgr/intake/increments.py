"""Increments: the accepted batches of new events beside the raw log, oldest first.

    data/NAME/increments/NNNN-DIGEST/    a batch's files under the names that the log's own have

The base of the log is never touched. NNNN counts from 0001. DIGEST is the start of the sha256 over
the batch's files, which identifies a batch wherever it comes from. Reads and writes below
`data.path` only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hpgr.runtime import UserError, atomic_folder, sha256_file

FOLDER = "increments"
NAME = re.compile(r"(\d{4,})-([0-9a-f]{12})")


def increments(log: Path) -> list[Path]:
    """Folders of the increments of the raw log in folder `log`, oldest first.

    Raises:
        UserError: something else lies among them.
    """
    found = [path for path in (log / FOLDER).glob("*") if not path.name.startswith(".")]
    for path in found:
        if not (path.is_dir() and NAME.fullmatch(path.name)):
            raise UserError(
                f"{path}: expected only folders named NNNN-DIGEST in {log / FOLDER}; move it away "
                "and bring new events with `hpgr refresh PATH`"
            )
    return sorted(found, key=lambda path: int(path.name.partition("-")[0]))


def digest(files: Mapping[str, Path]) -> str:
    """Twelve hex digits of a hash over `files` and their names in the log."""
    hashes = {name: sha256_file(path) for name, path in sorted(files.items())}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]


def find(log: Path, content: str) -> Path | None:
    """The increment with this digest, if the log has it."""
    for path in increments(log):
        if path.name.partition("-")[2] == content:
            return path
    return None


def next_name(log: Path, content: str) -> str:
    """Name of the increment that a batch with this digest becomes."""
    taken = increments(log)
    last = int(taken[-1].name.partition("-")[0]) if taken else 0
    return f"{last + 1:04d}-{content}"


def place(log: Path, name: str, files: Mapping[str, Path]) -> Path:
    """Copy `files` into the increment `name`, all of them or none; returns its folder."""
    target = log / FOLDER / name
    with atomic_folder(target) as folder:
        for file, source in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / file)
    return target


def remove(log: Path, name: str) -> None:
    """Remove the increment `name` and what an interrupted copy of it left."""
    folder = log / FOLDER
    for path in [folder / name, *folder.glob(f".{name}.*")]:
        shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
