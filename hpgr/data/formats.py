"""Raw folders of every known format, opened as canonical events plus items and users.

A log is a base and, beside it, increments: folders with files of the same format, of which only
the events need be there. Reads: the folder `data.path`, through `tables.py`. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from hpgr.config import Data
from hpgr.data.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    ITEM,
    PART,
    ROW,
    SESSION,
    TIMESTAMP,
    TITLE,
    USER,
)
from hpgr.data.dialect import dialect_of
from hpgr.data.increments import increments
from hpgr.data.raw_file import PARQUET, parts_of, require_file, require_path
from hpgr.data.records import Dialect
from hpgr.data.tables import (
    SOURCE,
    header,
    parquet_chunks,
    parquet_whole,
    table_chunks,
    table_whole,
    text_chunks,
    text_whole,
)
from hpgr.runtime import UserError


@dataclass(frozen=True)
class Part:
    """The tables of the base or of one increment, each a file or a folder of parts.

    None where it has no such table.
    """

    events: Path
    items: Path | None
    users: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All data files, those of the events first."""
        tables = (path for path in (self.events, self.items, self.users) if path is not None)
        return tuple(file for table in tables for file in parts_of(table))


@dataclass(frozen=True)
class Format:
    """Names of the files of one format, and what opens each.

    `open_events` takes the path and the rows of a chunk; a name is None where the log has no such
    table, and its function is then never called. `dialect` says how one data file is read.
    """

    events: str
    items: str | None
    users: str | None
    open_events: Callable[[Path, int], Iterator[pd.DataFrame]]
    open_items: Callable[[Path], pd.DataFrame]
    open_users: Callable[[Path], pd.DataFrame]
    dialect: Callable[[Path], Dialect | Literal["Parquet"]]

    @property
    def names(self) -> tuple[str, ...]:
        """All file names, the events' first."""
        return tuple(name for name in (self.events, self.items, self.users) if name is not None)

    def part(self, folder: Path) -> Part:
        """What of this format lies in `folder`; the events' file is taken to be there.

        Raises:
            UserError: something that cannot be read has the name of a table.
        """
        items, users = (
            folder / name if name is not None and _is_there(folder / name) else None
            for name in (self.items, self.users)
        )
        return Part(folder / self.events, items, users)


@dataclass(frozen=True)
class RawLog:
    """An opened log: the base, then its increments.

    `parts` are its files in order. `events` yields chunks of string columns EVENT_COLUMNS (missing
    where the log has none), `row` int64 from 0 through all parts, `part` int64, `source` int64 the
    place among `sources` of the row's file, `line` int64 from 1 in that file, and `ragged`. It can
    be walked once. `tables` has each table of items or users that was read: path, id column, rows.
    `items` has item_id, title and categories, `users` has user_id and whatever the source knows, a
    later part's row in place of an earlier one's; None where the source has no such table.
    `dialects` says how each of `files` is read, "Parquet" or the dialect of a text.
    """

    parts: tuple[Part, ...]
    events: Iterator[pd.DataFrame]
    tables: tuple[tuple[Path, str, pd.DataFrame], ...]
    items: pd.DataFrame | None
    users: pd.DataFrame | None
    dialects: tuple[Dialect | Literal["Parquet"], ...]

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files of events, the base's first."""
        return tuple(file for part in self.parts for file in parts_of(part.events))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files read, the base's events first."""
        return tuple(path for part in self.parts for path in part.files)


def read_raw(data: Data, chunk_rows: int) -> RawLog:
    """Open the raw folder that `data` describes; events come `chunk_rows` rows at a time at most.

    Raises:
        UserError: a file is missing or empty, or lacks a column.
    """
    layout = format_of(data)
    _require(data, layout.names)
    parts = [layout.part(folder) for folder in (data.path, *increments(data.path))]
    return read_parts(layout, parts, chunk_rows)


def read_parts(layout: Format, parts: Sequence[Part], chunk_rows: int) -> RawLog:
    """Open `parts` one after the other; see `read_raw`."""
    for part in parts:
        require_path(
            part.events,
            "an increment needs its events; bring it back with `dvc checkout data.dvc`",
        )
    chunks = [layout.open_events(part.events, chunk_rows) for part in parts]  # checks the headers
    items = [(part.items, layout.open_items(part.items)) for part in parts if part.items]
    users = [(part.users, layout.open_users(part.users)) for part in parts if part.users]
    return RawLog(
        parts=tuple(parts),
        events=_chain(chunks, [len(parts_of(part.events)) for part in parts]),
        tables=(
            *((path, ITEM, table) for path, table in items),
            *((path, USER, table) for path, table in users),
        ),
        items=_newest_rows([table for _, table in items], ITEM),
        users=_newest_rows([table for _, table in users], USER),
        dialects=tuple(layout.dialect(file) for part in parts for file in part.files),
    )


def _chain(
    parts: Sequence[Iterator[pd.DataFrame]], sources: Sequence[int]
) -> Iterator[pd.DataFrame]:
    """The chunks of all `parts`, which have so many `sources` each, numbered through."""
    rows = 0
    for number, chunks in enumerate(parts):
        for chunk in chunks:
            chunk[ROW] = np.arange(rows, rows + len(chunk))
            chunk[PART] = number
            chunk[SOURCE] = chunk.get(SOURCE, 0) + sum(sources[:number])
            rows += len(chunk)
            yield chunk


def _newest_rows(tables: Sequence[pd.DataFrame], key: str) -> pd.DataFrame | None:
    """All rows, but of an id that several tables have only those of the last; None of nothing.

    An id that one table repeats stays repeated, for the rules to find.
    """
    if not tables:
        return None
    kept, later = [], pd.Index([])
    for table in reversed(tables):
        kept.append(table[~table[key].isin(later)])
        later = later.union(pd.Index(table[key].dropna()).unique())
    return pd.concat(reversed(kept), ignore_index=True)


def _movielens_1m(data: Data) -> Format:
    """GroupLens' ml-1m: fields separated by "::", Latin-1, no header."""
    dialect = Dialect("::", "none", encoding="latin-1", header=False)
    people = [USER, "gender", "age", "occupation", "zip"]

    def items(path: Path) -> pd.DataFrame:
        table = _fields(path, dialect, [ITEM, TITLE, CATEGORIES])
        return table.assign(categories=_split(table[CATEGORIES], "|"))

    return Format(
        events="ratings.dat",
        items="movies.dat",
        users="users.dat",
        open_events=lambda path, rows: _ratings(path, dialect, rows),
        open_items=items,
        open_users=lambda path: _fields(path, dialect, people),
        dialect=lambda path: dialect,
    )


def _movielens_100k(data: Data) -> Format:
    """GroupLens' ml-100k with the items table that `sources.py` makes; no headers."""
    tabs, bars = Dialect("\t", "none", header=False), Dialect("|", "none", header=False)

    def items(path: Path) -> pd.DataFrame:
        table = _fields(path, tabs, [ITEM, TITLE, CATEGORIES])
        return table.assign(categories=_split(table[CATEGORIES], "|"))

    return Format(
        events="u.data",
        items="items.tsv",
        users="u.user",
        open_events=lambda path, rows: _ratings(path, tabs, rows),
        open_items=items,
        open_users=lambda path: _fields(path, bars, [USER, "age", "gender", "occupation", "zip"]),
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
    """Household -> user, product -> item, basket -> session; till times are read as UTC."""
    levels = ["department", "product_category", "brand"]
    columns = {
        USER: "household_id",
        ITEM: "product_id",
        TIMESTAMP: "transaction_timestamp",
        SESSION: "basket_id",
    }

    def items(path: Path) -> pd.DataFrame:
        wanted = {ITEM: "product_id", TITLE: "product_type"} | _same(levels)
        found = parquet_whole(path, _present(path, wanted))
        categories = [
            [value for value in values if isinstance(value, str)]
            for values in found[levels].itertuples(index=False, name=None)
        ]
        return found[[ITEM, TITLE]].assign(categories=pd.Series(categories, dtype=object))

    def users(path: Path) -> pd.DataFrame:
        features = [name for name in header(path) if name != "household_id"]
        return parquet_whole(path, _present(path, {USER: "household_id"} | _same(features)))

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
    """`columns`, once the file is known to have them all."""
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

    def items(path: Path) -> pd.DataFrame:
        wanted = {ITEM: mapped.item_id, TITLE: mapped.title, CATEGORIES: mapped.categories}
        present = {k: v for k, v in wanted.items() if v is not None}
        table = table_whole(path, present, data.quoting)
        table = table.reindex(columns=[ITEM, TITLE, CATEGORIES])
        return table.assign(categories=_split(table[CATEGORIES], data.category_separator))

    def users(path: Path) -> pd.DataFrame:
        others = [name for name in header(path) if name != mapped.user_id]
        return table_whole(path, {USER: mapped.user_id} | _same(others), data.quoting)

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
        UserError: a table is meant, but no file is named.
    """
    return FORMATS[data.format](data)


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def _is_there(path: Path) -> bool:
    """Whether something has this name: a file, a folder of parts, or what is refused."""
    if path.exists() or path.is_symlink():
        require_path(path, "correct the path")
        return True
    return False


def _require(data: Data, names: Sequence[str]) -> None:
    for name in names:
        if data.format == "table":
            require_path(data.path / name, "correct data.path and the file names in params.yaml")
        else:
            require_file(data.path / name, f"run: hpgr fetch {data.path.name}")


def _split(values: pd.Series, separator: str) -> pd.Series:
    """Lists of the non-empty parts of each value; a value that is a list already is kept."""

    def parts(value: object) -> list[str]:
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
        return [str(part) for part in value if part] if isinstance(value, Iterable) else []

    return pd.Series([parts(value) for value in values], index=values.index, dtype=object)
