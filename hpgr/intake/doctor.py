"""`hpgr doctor PATH`: the problems of a log, line by line, before anything runs.

Reads one table of events, items or users, or a whole raw folder. Writes only a scratch file. The
rules are those of the validate stage, and in addition what makes the stage refuse a whole file:
header, encoding, and mixed formats of time.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hpgr.intake.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    EVENTS,
    FIELDS_RULE,
    ITEM,
    TIMESTAMP,
    TITLE,
    UNKNOWN_ITEM,
    USER,
    row_rules,
    table_rules,
)
from hpgr.intake.expectations import Expectations
from hpgr.intake.file_problems import (
    LINES_PER_KIND,
    FileProblem,
    dialect_problems,
    no_rows,
    text_problems,
    unreadable,
)
from hpgr.intake.formats import Format, column_names, format_of
from hpgr.intake.log_notes import notes_on_actions, notes_on_rows, notes_on_spelling
from hpgr.intake.raw_file import (
    PARQUET,
    Absent,
    holds_parts,
    partition_of,
    parts_of,
    require_path,
    require_text,
)
from hpgr.intake.raw_log import read_raw, whole_ids
from hpgr.intake.row_problems import Listing, mixed
from hpgr.intake.screening import check_rows
from hpgr.intake.staging import mend_ids, stage
from hpgr.intake.table_files import header, repeated, suggestion, table_chunks
from hpgr.intake.time_units import shapes
from hpgr.intake.training_outlook import training_notes
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.config import Config, Data

CHUNK_ROWS = 1 << 18


def doctor(path: Path, cfg: Config, outlook: list[FileProblem] | None = None) -> list[FileProblem]:
    """The problems of `path` in order of files and lines, at most LINES_PER_KIND of each kind.

    Args:
        path: a raw folder in the format that `cfg.data` names, or one table with the columns of
            `cfg.data.columns`: a Parquet or CSV file or a folder of such parts. It holds items or
            users if it has the name that `cfg.data` gives to such a table, otherwise events.
        cfg: the format and the limits.
        outlook: receives notes on what training will make of a sound log.
    """
    outlook = [] if outlook is None else outlook
    if refused := _refused(path):
        return refused
    data = cfg.data.model_copy(update={"format": "table", "path": path})
    roles = {role: path / name for role, name in _named(data)}
    is_log = any(table.exists() for table in roles.values())
    named = any(path.name == Path(name).name for _, name in _named(data))
    if path.is_dir() and (is_log or not (holds_parts(path) or named)):
        if cfg.data.format != "table":
            return _examine_log(cfg.data.model_copy(update={"path": path}), cfg, outlook)
        return [
            problem
            for role, table in roles.items()
            for problem in _examine_file(table, role, data, cfg, outlook)
        ]
    role, folder = _role(path, data)
    data = data.model_copy(update={"path": folder})
    if role == EVENTS:
        beside = {
            kind: name if name is not None and (folder / name).exists() else None
            for kind, name in (("items", data.items), ("users", data.users))
        }
        name = path.relative_to(folder).as_posix()
        data = data.model_copy(update={"interactions": name, **beside})
    return _examine_file(path, role, data, cfg, outlook)


def _named(data: Data) -> list[tuple[str, str]]:
    """Role and name of each table that `data` names."""
    named = ((EVENTS, data.interactions), (ITEM, data.items), (USER, data.users))
    return [(role, name) for role, name in named if name is not None]


def _role(path: Path, data: Data) -> tuple[str, Path]:
    """The role that the name of the table at `path` implies, and the raw folder that it lies in."""
    for role, name in _named(data):
        if path.parts[-len(Path(name).parts) :] == Path(name).parts:
            return role, path.parents[len(Path(name).parts) - 1]
    for role, name in _named(data):
        if role != EVENTS and path.name == Path(name).name:
            return role, path.parent
    return EVENTS, path.parent


def _refused(path: Path) -> list[FileProblem]:
    """The problem of a path that cannot be read at all."""
    try:
        require_path(path, "correct the path")
    except Absent:
        return [FileProblem(path, "missing", "nothing", "a file or folder", "correct the path")]
    except UserError as error:
        return [unreadable(path, error)]
    return []


def _examine_file(
    path: Path, role: str, data: Data, cfg: Config, outlook: list[FileProblem]
) -> list[FileProblem]:
    problems = _examine_shape(path, role, data)
    if any(p.serious for p in problems):
        return problems
    if role != EVENTS:
        return problems + _examine_table(path, role, data)
    # Users do not matter for events. Items do; problems of their file are reported for that file.
    data = data.model_copy(update={"users": None})
    if data.items is not None and _faults_of_items(data.path / data.items, data):
        data = data.model_copy(update={"items": None})
    return problems + _examine_log(data, cfg, outlook)


def _faults_of_items(path: Path, data: Data) -> bool:
    """Return True if the items cannot be read."""
    if any(p.serious for p in _examine_shape(path, ITEM, data)):
        return True
    try:
        format_of(data).open_table(ITEM, path)
    except UserError:
        return True
    return False


def _examine_shape(path: Path, role: str, data: Data) -> list[FileProblem]:
    """Problems of files, encodings, headers and dialects, found before a row is read."""
    if refused := _refused(path):
        return refused
    problems: list[FileProblem] = []
    try:
        for part in parts_of(path):
            problems += _examine_part(part, path, role, data)
    except UserError as error:
        problems.append(unreadable(path, error))
    return problems


def _examine_part(part: Path, table: Path, role: str, data: Data) -> list[FileProblem]:
    """Problems of one file of a table: its text, its header and its dialect."""
    if part.suffix in PARQUET:
        return list(_examine_header(part, table, role, data))
    try:
        require_text(part)
    except UserError as error:
        return [unreadable(part, error)]
    problems = text_problems(part)
    if not any(p.serious for p in problems):
        problems += _examine_header(part, table, role, data)
    if not any(p.serious for p in problems):
        problems += dialect_problems(part, data.quoting)
    return problems


def _columns_of(role: str, data: Data) -> dict[str, str]:
    """Columns that a file of this role must have, ours -> theirs."""
    mapped = data.columns
    wanted = {USER: [USER], ITEM: [ITEM, TITLE, CATEGORIES]}.get(role, EVENT_COLUMNS)
    return {name: getattr(mapped, name) for name in wanted if getattr(mapped, name) is not None}


def _examine_header(path: Path, table: Path, role: str, data: Data) -> Iterator[FileProblem]:
    """Missing and repeated columns of one file of a table."""
    try:
        names = header(path)
    except UserError as error:
        yield unreadable(path, error)
        return
    for name in repeated(names):
        places = [str(n + 1) for n, other in enumerate(names) if other == name]
        yield FileProblem(
            path,
            "repeated column",
            f"it in places {', '.join(places)}",
            "each name once",
            "rename or drop the copies",
            line=1,
            column=name,
        )
    names += [name for name in partition_of(path, table) if name not in names]
    for wanted, name in _columns_of(role, data).items():
        if name not in names:
            yield FileProblem(
                path,
                "missing column",
                f"the columns {', '.join(names)}",
                f"one named {name!r}",
                suggestion(wanted, name, names),
                line=1,
                column=name,
            )


def _examine_table(path: Path, key: str, data: Data) -> list[FileProblem]:
    """Problems of the ids of items or users, and notes on how the other columns are read."""
    columns = {key: _columns_of(key, data)[key]}
    try:
        chunks = list(table_chunks(path, columns, CHUNK_ROWS, data.quoting))
        if not chunks:
            return [no_rows(path)]
        frame = pd.concat(chunks, ignore_index=True)
        frame[key] = whole_ids(path, key, frame[key])
        layout = format_of(data)
        if problems := _examine_ids(path, columns, frame, key):
            return problems
        return layout.open_table(key, path)[1]
    except UserError as error:
        return [unreadable(path, error)]


def _examine_ids(
    path: Path, columns: dict[str, str], frame: pd.DataFrame, key: str
) -> list[FileProblem]:
    rules = (FIELDS_RULE, *table_rules(key, "this file"))
    expectations, listing = Expectations(), Listing(parts_of(path), columns)
    expectations.add("table", rules)
    listing.add(frame, expectations.check("table", frame), rules)
    return listing.problems()


def _examine_log(data: Data, cfg: Config, outlook: list[FileProblem]) -> list[FileProblem]:
    """Check every row of the events that `data` names by the rules of the validate stage."""
    layout = format_of(data)
    items_file = data.path / layout.tables[ITEM].name if ITEM in layout.tables else None
    rules, counted, rows = row_rules(cfg.validate_, items_file), Counter[str](), 0
    try:
        raw = read_raw(data, cfg.validate_.chunk_rows)
    except UserError as error:
        return [unreadable(_file_of(error, data, layout), error)]
    path, columns = raw.parts[0][EVENTS], column_names(data)
    files = [part[EVENTS] for part in raw.parts]
    listing = Listing(raw.sources, _columns_of(EVENTS, data) if data.format == "table" else columns)
    unknown: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hpgr-doctor-") as scratch:
        staged = Path(scratch) / "staged.parquet"
        try:
            stage(raw.events, staged)
            mended = mend_ids(staged, files)
        except UserError as error:
            return [unreadable(path, error)]
        chunks = check_rows(staged, rules, Expectations(), cfg.validate_.chunk_rows, raw.items)
        for chunk, found in chunks:
            listing.add(chunk, found, rules)
            strangers = chunk[ITEM].iloc[found.get(UNKNOWN_ITEM, [])]
            unknown += strangers.iloc[: LINES_PER_KIND - len(unknown)].tolist()
            counted.update(shapes(chunk[TIMESTAMP]).value_counts().to_dict())
            rows += len(chunk)
        if not rows:
            return [no_rows(path)]
        notes = notes_on_rows(staged, files, columns, mended)
        if data.format != "table" or data.columns.action is not None:
            notes += notes_on_actions(staged, path, columns[ACTION], cfg.sessionize)
        outlook += training_notes(staged, path, columns, cfg)
    if raw.items is not None and items_file is not None:
        notes += notes_on_spelling(unknown, raw.items[ITEM], path, items_file)
    problems = [*mixed(path, columns[TIMESTAMP], counted), *notes, *listing.problems()]
    for file_path, key, table in raw.tables:
        if data.format != "table" or file_path not in raw.parts[0].values():
            frame = table[[key]].assign(line=np.arange(1, len(table) + 1), ragged=None)
            problems += _examine_ids(file_path, {key: key}, frame, key)
    return problems


def _file_of(error: UserError, data: Data, layout: Format) -> Path:
    """The file that an error of reading a log is about."""
    files = [data.path / table.name for table in layout.tables.values()]
    return next((file for file in files if str(error).startswith(str(file))), files[0])
