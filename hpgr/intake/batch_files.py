"""The files of a batch of new events, and the names that they get in the log.

A batch is a file of events, a folder of parts of events, or a folder with tables under the names
that the log's own have. Reads names and kinds of files; writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpgr.intake.contract import EVENTS
from hpgr.intake.formats import Part, format_of
from hpgr.intake.raw_file import PARQUET, holds_parts, parts_of, require_file, require_path
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.config import Data


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
