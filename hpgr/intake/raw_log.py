"""A raw log of any known format (`formats.py`), opened as canonical tables.

A log is a base and its increments: folders with files of the same format, in which only the events
are required. Reads the folder `data.path` through `table_files.py`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from hpgr.intake.contract import ACTION, EVENTS, IMPRESSIONS, ITEM, PART, ROW, SOURCE, USER
from hpgr.intake.delimited_text import Dialect
from hpgr.intake.file_problems import FileProblem
from hpgr.intake.formats import Format, Part, files_of, format_of
from hpgr.intake.increments import increments
from hpgr.intake.raw_file import parts_of, require_file, require_path
from hpgr.intake.spelling import DIGITS_LOST, plain_words, whole_numbers
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.config import Data


@dataclass(frozen=True)
class RawLog:
    """An opened log: the base, then its increments.

    Attributes:
        parts: its files in order.
        events: chunks with string columns EVENT_COLUMNS (missing where the log has none), `row`
            int64 from 0 through all parts, `part` int64, `source` int64 (the place of the row's
            file among `sources`), `line` int64 from 1 in that file, and `ragged`. An iterator:
            it can be read once.
        impressions: chunks of the shown items in the same way, with the columns SHOWN_COLUMNS and
            `part` counting the parts that have such a table; None if none has.
        tables: each table of items or users that was read: path, id column, rows.
        items: item_id, title and categories, with the row of the latest part for each id; None if
            the source has no such table.
        users: user_id and whatever else the source knows; otherwise as `items`.
        dialects: of each of `files`, "Parquet" or the dialect of a text.
        notes: on how the tables were read.
    """

    parts: tuple[Part, ...]
    events: Iterator[pd.DataFrame]
    impressions: Iterator[pd.DataFrame] | None
    tables: tuple[tuple[Path, str, pd.DataFrame], ...]
    items: pd.DataFrame | None
    users: pd.DataFrame | None
    dialects: tuple[Dialect | Literal["Parquet"], ...]
    notes: tuple[FileProblem, ...]

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files of events, the base's first."""
        return tuple(file for part in self.parts for file in parts_of(part[EVENTS]))

    @property
    def shown(self) -> tuple[Path, ...]:
        """The tables of impressions, the base's first."""
        return tuple(part[IMPRESSIONS] for part in self.parts if IMPRESSIONS in part)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files read, the base's events first."""
        return tuple(path for part in self.parts for path in files_of(part))


def read_raw(data: Data, chunk_rows: int) -> RawLog:
    """Open the raw folder that `data` describes; events come `chunk_rows` rows at a time at most.

    Raises:
        UserError: a file is missing or empty, or lacks a column.
    """
    layout = format_of(data)
    for table in layout.tables.values():
        if layout.own:
            fix = "correct data.path and the file names in params.yaml"
            require_path(data.path / table.name, fix)
        else:
            require_file(data.path / table.name, f"run: hpgr fetch {data.path.name}")
    parts = [layout.part(folder) for folder in (data.path, *increments(data.path))]
    return read_parts(layout, parts, chunk_rows)


def read_parts(layout: Format, parts: Sequence[Part], chunk_rows: int) -> RawLog:
    """Open `parts` in order; see `read_raw`."""
    for part in parts:
        require_path(
            part[EVENTS],
            "an increment needs its events; bring it back with `dvc checkout data.dvc`",
        )
    events, impressions = (  # checks the headers
        [(p[role], layout.open_rows(role, p[role], chunk_rows)) for p in parts if role in p]
        for role in (EVENTS, IMPRESSIONS)
    )
    tables, notes = [], []
    for key in (ITEM, USER):
        for path in (part[key] for part in parts if key in part):
            table, found = layout.open_table(key, path)
            table[key] = whole_ids(path, key, table[key])
            tables.append((path, key, table))
            notes += found
    return RawLog(
        parts=tuple(parts),
        events=numbered(events),
        impressions=numbered(impressions) if impressions else None,
        tables=tuple(tables),
        items=_newest_rows(tables, ITEM),
        users=_newest_rows(tables, USER),
        dialects=tuple(dialect for part in parts for dialect in layout.dialects(part)),
        notes=tuple(notes),
    )


def numbered(parts: Sequence[tuple[Path, Iterator[pd.DataFrame]]]) -> Iterator[pd.DataFrame]:
    """The chunks of all parts of a table, numbered through; each part with its path."""
    rows = sources = 0
    for number, (path, chunks) in enumerate(parts):
        for chunk in chunks:
            chunk[ROW] = np.arange(rows, rows + len(chunk))
            chunk[PART] = number
            chunk[SOURCE] += sources
            chunk[ACTION] = plain_words(chunk[ACTION])
            rows += len(chunk)
            yield chunk
        sources += len(parts_of(path))


def _newest_rows(tables: Sequence[tuple[Path, str, pd.DataFrame]], key: str) -> pd.DataFrame | None:
    """The rows of all tables with this id, each id's from the last that has it; None without any.

    An id that one table repeats stays repeated, so that the rules find it.
    """
    kept, later = list[pd.DataFrame](), pd.Index([])
    for table in (table for _, its_key, table in reversed(tables) if its_key == key):
        kept.append(table[~table[key].isin(later)])
        later = later.union(pd.Index(table[key].dropna()).unique())
    return pd.concat(reversed(kept), ignore_index=True) if kept else None


def whole_ids(path: Path, key: str, ids: pd.Series) -> pd.Series:
    """Apply `whole_numbers` to an id column of a file.

    Raises:
        UserError: an id lost digits in a float.
    """
    try:
        return whole_numbers(ids)
    except ValueError as error:
        raise UserError(f"{path}: {key} holds {error}: {DIGITS_LOST}") from error
