"""The known formats of raw folders: the names of their files, and functions that open them.

Reads files through `table_files.py`. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from hpgr.intake.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    ITEM,
    SESSION,
    TIMESTAMP,
    TITLE,
    USER,
)
from hpgr.intake.dialect import dialect_of
from hpgr.intake.file_problems import FileProblem, note
from hpgr.intake.list_cells import split
from hpgr.intake.raw_file import PARQUET, parts_of, require_path
from hpgr.intake.table_files import (
    header,
    parquet_chunks,
    parquet_whole,
    table_chunks,
    table_whole,
    text_chunks,
    text_whole,
)
from hpgr.intake.text_records import Dialect
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.config import Data


@dataclass(frozen=True)
class Part:
    """The tables of the base or of one increment, each a file or a folder of parts.

    `items` and `users` are None if it has no such table.
    """

    events: Path
    items: Path | None
    users: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All data files, those of the events first."""
        tables = (path for path in (self.events, self.items, self.users) if path is not None)
        return tuple(file for table in tables for file in parts_of(table))


# A table of items or users, and notes on how it was read.
Opened = tuple[pd.DataFrame, list[FileProblem]]


@dataclass(frozen=True)
class Format:
    """File names of one format, and a function that opens each.

    `open_events` takes the path and the rows of a chunk. A name is None if the log has no such
    table; its function is then never called. `dialect` returns how a data file is read.
    """

    events: str
    items: str | None
    users: str | None
    open_events: Callable[[Path, int], Iterator[pd.DataFrame]]
    open_items: Callable[[Path], Opened]
    open_users: Callable[[Path], Opened]
    dialect: Callable[[Path], Dialect | Literal["Parquet"]]

    @property
    def names(self) -> tuple[str, ...]:
        """All file names, the events' first."""
        return tuple(name for name in (self.events, self.items, self.users) if name is not None)

    def part(self, folder: Path) -> Part:
        """The tables in `folder`, which is assumed to hold the events.

        Raises:
            UserError: something unreadable has the name of a table.
        """
        items, users = (
            folder / name if name is not None and _is_there(folder / name) else None
            for name in (self.items, self.users)
        )
        return Part(folder / self.events, items, users)


def _movielens_1m(data: Data) -> Format:
    """GroupLens' ml-1m: fields separated by "::", Latin-1, no header."""
    dialect = Dialect("::", "none", encoding="latin-1", header=False)
    people = [USER, "gender", "age", "occupation", "zip"]

    def items(path: Path) -> Opened:
        table = _fields(path, dialect, [ITEM, TITLE, CATEGORIES])
        return _with_lists(path, table, "|", [])

    return Format(
        events="ratings.dat",
        items="movies.dat",
        users="users.dat",
        open_events=lambda path, rows: _ratings(path, dialect, rows),
        open_items=items,
        open_users=lambda path: (_fields(path, dialect, people), []),
        dialect=lambda path: dialect,
    )


def _movielens_100k(data: Data) -> Format:
    """GroupLens' ml-100k with the items table that `public_logs.py` makes; no headers."""
    tabs, bars = Dialect("\t", "none", header=False), Dialect("|", "none", header=False)

    def items(path: Path) -> Opened:
        table = _fields(path, tabs, [ITEM, TITLE, CATEGORIES])
        return _with_lists(path, table, "|", [])

    return Format(
        events="u.data",
        items="items.tsv",
        users="u.user",
        open_events=lambda path, rows: _ratings(path, tabs, rows),
        open_items=items,
        open_users=lambda path: (
            _fields(path, bars, [USER, "age", "gender", "occupation", "zip"]),
            [],
        ),
        dialect=lambda path: bars if path.name == "u.user" else tabs,
    )


def _ratings(path: Path, dialect: Dialect, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Both MovieLens formats: user, item, rating, time."""
    places = {USER: 0, ITEM: 1, ACTION: 2, TIMESTAMP: 3}
    return text_chunks(path, dialect, places, len(places), chunk_rows)


def _fields(path: Path, dialect: Dialect, names: Sequence[str]) -> pd.DataFrame:
    """A whole text whose fields have `names`."""
    table = text_whole(path, dialect, {name: n for n, name in enumerate(names)}, len(names))
    if table.empty:
        raise UserError(f"{path} has no rows: expected one for each id")
    return table


def _complete_journey(data: Data) -> Format:
    """Household -> user, product -> item, basket -> session; times are read as UTC."""
    levels = ["department", "product_category", "brand"]
    columns = {
        USER: "household_id",
        ITEM: "product_id",
        TIMESTAMP: "transaction_timestamp",
        SESSION: "basket_id",
    }

    def items(path: Path) -> Opened:
        wanted = {ITEM: "product_id", TITLE: "product_type"} | _same(levels)
        found, notes = parquet_whole(path, _present(path, wanted))
        found = found.reindex(columns=list(wanted))
        categories = [
            [value for value in values if isinstance(value, str)]
            for values in found[levels].itertuples(index=False, name=None)
        ]
        lists = pd.Series(categories, dtype=object)
        return found[[ITEM, TITLE]].assign(categories=lists), notes

    def users(path: Path) -> Opened:
        named, notes = _features(path, "household_id")
        table, found = parquet_whole(path, _present(path, named))
        return table, notes + found

    return Format(
        events="transactions.parquet",
        items="products.parquet",
        users="demographics.parquet",
        open_events=lambda path, rows: parquet_chunks(path, _present(path, columns), rows),
        open_items=items,
        open_users=users,
        dialect=lambda path: "Parquet",
    )


def _present(path: Path, columns: dict[str, str]) -> dict[str, str]:
    """Return `columns` if the file has them all."""
    names = header(path)
    if absent := [name for name in columns.values() if name not in names]:
        raise UserError(
            f"{path} lacks {', '.join(absent)}: the format complete-journey has them; "
            f"it has {', '.join(names)}"
        )
    return columns


def _table(data: Data) -> Format:
    """The user's own tables, Parquet or CSV, with the columns named in `data.columns`."""
    if data.interactions is None:
        raise UserError(
            "data.format is table, but data.interactions names no file: "
            f"set it in params.yaml to the file of events inside {data.path}"
        )
    mapped = data.columns
    columns = {name: getattr(mapped, name) for name in EVENT_COLUMNS if getattr(mapped, name)}

    def items(path: Path) -> Opened:
        wanted = {ITEM: mapped.item_id, TITLE: mapped.title, CATEGORIES: mapped.categories}
        present = {k: v for k, v in wanted.items() if v is not None}
        table, notes = table_whole(path, present, data.quoting)
        table = table.reindex(columns=[ITEM, TITLE, CATEGORIES])
        return _with_lists(path, table, data.category_separator, notes, mapped.categories)

    def users(path: Path) -> Opened:
        columns, notes = _features(path, mapped.user_id)
        table, found = table_whole(path, columns, data.quoting)
        return table, notes + found

    def dialect(path: Path) -> Dialect | Literal["Parquet"]:
        return "Parquet" if path.suffix in PARQUET else dialect_of(path, data.quoting)

    return Format(
        events=data.interactions,
        items=data.items,
        users=data.users,
        open_events=lambda path, rows: table_chunks(path, columns, rows, data.quoting),
        open_items=items,
        open_users=users,
        dialect=dialect,
    )


FORMATS: dict[str, Callable[[Data], Format]] = {
    "movielens-1m": _movielens_1m,
    "movielens-100k": _movielens_100k,
    "complete-journey": _complete_journey,
    "table": _table,
}


def format_of(data: Data) -> Format:
    """The format that `data` names.

    Raises:
        UserError: the format is table, but no file is named.
    """
    return FORMATS[data.format](data)


def column_names(data: Data) -> dict[str, str]:
    """The name of each of our columns in the events' file; our own name if the format has none."""
    mapped = data.columns.model_dump() if data.format == "table" else {}
    return {name: mapped.get(name) or name for name in EVENT_COLUMNS}


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def _with_lists(
    path: Path,
    table: pd.DataFrame,
    separator: str,
    notes: list[FileProblem],
    column: str | None = CATEGORIES,
) -> Opened:
    """The items with a list of categories in each row."""
    lists, found = split(table[CATEGORIES], separator)
    if found:
        fix = "look whether that is what they mean; write every cell the same way"
        expected = f"values separated by {separator!r}"
        notes = [*notes, note(path, "lists as text", column, found, expected, fix)]
    return table.assign(categories=lists), notes


def _features(path: Path, key: str) -> tuple[dict[str, str], list[FileProblem]]:
    """All columns of a users file, ours -> theirs; `key` is the user.

    Another column of that name gets a new one. Names that differ only in case are equal, as in
    DuckDB.
    """
    columns, notes = {USER: key}, []
    for name in header(path):
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
