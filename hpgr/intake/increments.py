"""The files of a batch of new events, and the increment beside the raw log that it becomes.

    data/NAME/increments/NNNN-DIGEST/    a batch's files under the names that the log's own have

A batch is a file of events, a folder of parts of events, or a folder with tables under the names
that the log's own have. The base of the log is never touched. NNNN counts from 0001. DIGEST is the
start of the sha256 over the batch's files, which identifies a batch wherever it comes from. Writes
below `data.path` only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpgr.intake.contract import EVENTS
from hpgr.intake.formats import Part, format_of
from hpgr.intake.raw_file import PARQUET, holds_parts, parts_of, require_file, require_path
from hpgr.runtime import UserError, atomic_folder, sha256_file

if TYPE_CHECKING:
    from hpgr.config import Data

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


def digest_of(hashes: Mapping[str, str]) -> str:
    """One hash for all files of a log; `hashes` has the sha256 of each by its name."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def digest(files: Mapping[str, Path]) -> str:
    """Twelve hex digits of a hash over `files` and their names in the log."""
    return digest_of({name: sha256_file(path) for name, path in files.items()})[:12]


def find(log: Path, content: str) -> Path | None:
    """The increment with this digest, if the log has it."""
    return next((p for p in increments(log) if p.name.partition("-")[2] == content), None)


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


def batch_tables(data: Data, source: Path) -> Part:
    """The tables of the batch at `source`.

    Raises:
        UserError: nothing readable is there, it lies inside the log, or the format has no such
            table.
    """
    roles = {table.name: role for role, table in format_of(data).tables.items()}
    events, *others = roles
    require_path(source, "give the file or folder of new events")
    if source.resolve().is_relative_to(data.path.parent.resolve()):
        raise UserError(
            f"{source} lies in {data.path.parent}, which data.dvc pins: move it elsewhere; what "
            "is accepted is copied"
        )
    own = data.path / events
    if source.is_file() or (data.format == "table" and _is_parts(source, own)):
        like = parts_of(own)[0] if own.exists() else own
        if (parts_of(source)[0].suffix in PARQUET) != (like.suffix in PARQUET):
            raise UserError(f"{source}: expected the format of {own}, the log's events")
        return {EVENTS: source}
    found = {path.name: path for path in source.iterdir() if not path.name.startswith((".", "_"))}
    expected = f"expected {events}" + "".join(f", if need be {name}" for name in others)
    if strange := sorted(found.keys() - roles.keys()):
        raise UserError(f"{source} holds {', '.join(strange)}: {expected}, and nothing else")
    if events not in found:
        raise UserError(f"{source} holds no events: {expected}")
    for path in found.values():
        (require_path if data.format == "table" else require_file)(path, "correct the path")
    return {role: found[name] for name, role in roles.items() if name in found}


def _is_parts(source: Path, own: Path) -> bool:
    """Return True if the folder `source` holds parts of events, as the log's `own` may."""
    return holds_parts(source) or (own.is_dir() and not (source / own.name).exists())


def batch_files(data: Data, tables: Part) -> dict[str, Path]:
    """The data files of a batch's `tables` by the names that they get in the log."""
    layout, files = format_of(data), dict[str, Path]()
    for role, table in tables.items():
        name = layout.tables[role].name
        if table.is_dir():
            files |= {f"{name}/{p.relative_to(table).as_posix()}": p for p in parts_of(table)}
        elif (data.path / name).is_dir():  # the suffix says what a part is
            files[f"{name}/{table.name}"] = table
        else:
            files[name] = table
    return files
