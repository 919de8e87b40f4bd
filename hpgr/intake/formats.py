"""The known formats of raw folders: their tables, with the names and columns of each.

Reads files through `table_files.py`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from hpgr.intake.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    EVENTS,
    IMPRESSIONS,
    ITEM,
    SESSION,
    SHOWN_COLUMNS,
    TIMESTAMP,
    TITLE,
    USER,
)
from hpgr.intake.delimited_text import Dialect
from hpgr.intake.file_problems import FileProblem, note
from hpgr.intake.list_cells import split
from hpgr.intake.raw_file import parts_of, require_path
from hpgr.intake.table_files import Reading, dialect_in, header, table_chunks, table_whole
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.config import Data


Part = dict[str, Path]
"""The tables of the base or of one increment by role, the events first.

Each is a file or a folder of parts. There may be no items, no users and no impressions.
"""


def files_of(part: Part) -> list[Path]:
    """All data files of a part, those of the events first."""
    return [file for path in part.values() for file in parts_of(path)]


@dataclass(frozen=True)
class Table:
    """One table of a format: its file or folder, and name there of each of our columns.

    Columns of items beside id, title and categories hold one category each. Of users every column
    is read, and only the id's has to be named.
    """

    name: str
    columns: dict[str, str]
    reading: Reading = "auto"


# A table of items or users, and notes on how it was read.
Opened = tuple[pd.DataFrame, list[FileProblem]]


@dataclass(frozen=True)
class Format:
    """The tables of one format by role, the events first; the others may be absent.

    `separator` lies between the categories in a cell. `own` is True if params.yaml names the
    columns, and not the format.
    """

    tables: dict[str, Table]
    separator: str = "|"
    own: bool = False

    def part(self, folder: Path) -> Part:
        """The tables in `folder`, which is assumed to hold the events.

        Raises:
            UserError: something unreadable has the name of a table.
        """
        paths = {role: folder / table.name for role, table in self.tables.items()}
        return {role: path for role, path in paths.items() if role == EVENTS or _is_there(path)}

    def dialects(self, part: Part) -> list[Dialect | Literal["Parquet"]]:
        """The dialect of each file of `part`, in the order of `files_of`."""
        return [
            dialect_in(file, self.tables[role].reading) or "Parquet"
            for role, path in part.items()
            for file in parts_of(path)
        ]

    def open_rows(self, role: str, path: Path, chunk_rows: int) -> Iterator[pd.DataFrame]:
        """The events or impressions at `path`, see `table_chunks`."""
        table = self.tables[role]
        self._names(path, table)
        return table_chunks(path, table.columns, chunk_rows, table.reading)

    def open_table(self, role: str, path: Path) -> Opened:
        """The items at `path` (id, title, a list of categories), or the users with all columns."""
        table = self.tables[role]
        names = self._names(path, table)
        if role == ITEM:
            frame, notes = table_whole(path, table.columns, table.reading)
            lists, more = self._lists(path, table, frame)
            return frame.reindex(columns=[ITEM, TITLE]).assign(categories=lists), notes + more
        columns, notes = _features(names, path, table.columns[USER])
        frame, more = table_whole(path, columns, table.reading)
        return frame, notes + more

    def _lists(
        self, path: Path, table: Table, items: pd.DataFrame
    ) -> tuple[pd.Series, list[FileProblem]]:
        """The list of categories of each item, and a note if cells look like lists."""
        if levels := [name for name in table.columns if name not in (ITEM, TITLE, CATEGORIES)]:
            rows = items.reindex(columns=levels).itertuples(index=False, name=None)
            named = [[value for value in row if isinstance(value, str)] for row in rows]
            return pd.Series(named, dtype=object), []
        cells = items.reindex(columns=[CATEGORIES])[CATEGORIES]
        lists, found = split(cells, self.separator)
        if not found:
            return lists, []
        column, expected = table.columns[CATEGORIES], f"values separated by {self.separator!r}"
        fix = "look whether that is what they mean; write every cell the same way"
        return lists, [note(path, "lists as text", column, found, expected, fix)]

    def _names(self, path: Path, table: Table) -> list[str]:
        """Names in the header; refuse one that lacks a column of the format."""
        names = header(path, table.reading)
        absent = [name for name in table.columns.values() if name not in names]
        if absent and not self.own:
            raise UserError(
                f"{path} lacks {', '.join(absent)}: the format has them; it has {', '.join(names)}"
            )
        return names


def _plain(name: str, dialect: Callable[..., Dialect], *fields: str) -> Table:
    """A text without a header whose `fields` have our names."""
    return Table(name, {field: field for field in fields}, dialect(names=fields))


COLONS = partial(Dialect, "::", "none", "latin-1")
TABS, BARS = partial(Dialect, "\t", "none"), partial(Dialect, "|", "none")
FORMATS = {
    "movielens-1m": Format(
        {
            EVENTS: _plain("ratings.dat", COLONS, USER, ITEM, ACTION, TIMESTAMP),
            ITEM: _plain("movies.dat", COLONS, ITEM, TITLE, CATEGORIES),
            USER: _plain("users.dat", COLONS, USER, "gender", "age", "occupation", "zip"),
        }
    ),
    "movielens-100k": Format(
        {  # the items are the table that `public_logs.py` makes
            EVENTS: _plain("u.data", TABS, USER, ITEM, ACTION, TIMESTAMP),
            ITEM: _plain("items.tsv", TABS, ITEM, TITLE, CATEGORIES),
            USER: _plain("u.user", BARS, USER, "age", "gender", "occupation", "zip"),
        }
    ),
    "complete-journey": Format(
        {  # a basket is a session; times are read as UTC
            EVENTS: Table(
                "transactions.parquet",
                {
                    USER: "household_id",
                    ITEM: "product_id",
                    TIMESTAMP: "transaction_timestamp",
                    SESSION: "basket_id",
                },
            ),
            ITEM: Table(
                "products.parquet",
                {ITEM: "product_id", TITLE: "product_type"}
                | {name: name for name in ("department", "product_category", "brand")},
            ),
            USER: Table("demographics.parquet", {USER: "household_id"}),
        }
    ),
}


def _table(data: Data) -> Format:
    """The user's own tables, Parquet or CSV, with the columns named in `data.columns`."""
    if data.interactions is None:
        raise UserError(
            "data.format is table, but data.interactions names no file: "
            f"set it in params.yaml to the file of events inside {data.path}"
        )
    named = {ours: name for ours, name in data.columns.model_dump().items() if name is not None}

    wanted = {
        EVENTS: (data.interactions, EVENT_COLUMNS),
        ITEM: (data.items, (ITEM, TITLE, CATEGORIES)),
        USER: (data.users, (USER,)),
        IMPRESSIONS: (data.impressions, SHOWN_COLUMNS),
    }
    tables = {
        role: Table(name, {ours: named[ours] for ours in columns if ours in named}, data.quoting)
        for role, (name, columns) in wanted.items()
        if name is not None
    }
    return Format(tables, data.category_separator, own=True)


def format_of(data: Data) -> Format:
    """The format that `data` names.

    Raises:
        UserError: the format is table, but no file is named.
    """
    return _table(data) if data.format == "table" else FORMATS[data.format]


def column_names(data: Data) -> dict[str, str]:
    """The name of each of our columns in the events' file; our own name if the format has none."""
    mapped = data.columns.model_dump() if data.format == "table" else {}
    return {name: mapped.get(name) or name for name in EVENT_COLUMNS}


def _features(
    names: Sequence[str], path: Path, key: str
) -> tuple[dict[str, str], list[FileProblem]]:
    """All columns of a users file that has `names`, ours -> theirs; `key` is the user.

    Another column of that name gets a new one. Names that differ only in case are equal, as in
    DuckDB.
    """
    columns, notes = {USER: key}, []
    for name in names:
        if name == key:
            continue
        ours, taken = name, {column.lower() for column in columns}
        while ours.lower() in taken:
            ours += "_"
        columns[ours] = name
        if name.lower() == USER:
            found = f"a column {name!r} beside {key!r}, which data.columns.user_id names"
            fix = f"it is kept as the feature {ours!r}"
            notes.append(note(path, "second id", name, found, "one id column", fix))
    return columns, notes


def _is_there(path: Path) -> bool:
    """Return True if something has this name; refuse what cannot be read."""
    if path.exists() or path.is_symlink():
        require_path(path, "correct the path")
        return True
    return False
