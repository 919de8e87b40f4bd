"""Raw folders of every known format, opened as canonical events plus items and users.

A log is a base and, beside it, increments: folders with files of the same format, of which only
the events need be there. Reads: the folder `data.path`, through `tables.py`. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from hpgr.data.increments import increments
from hpgr.data.raw_file import require_file
from hpgr.data.tables import (
    header,
    parquet_chunks,
    parquet_whole,
    plain_rows,
    plain_whole,
    table_chunks,
    table_whole,
    text_chunks,
)
from hpgr.runtime import UserError


@dataclass(frozen=True)
class Part:
    """The files of the base or of one increment; None where it has no such table."""

    events: Path
    items: Path | None
    users: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are there."""
        return tuple(path for path in (self.events, self.items, self.users) if path is not None)


@dataclass(frozen=True)
class Format:
    """Names of the files of one format, and what opens each.

    `open_events` takes the path and the rows of a chunk; a name is None where the log has no such
    table, and its function is then never called.
    """

    events: str
    items: str | None
    users: str | None
    open_events: Callable[[Path, int], Iterator[pd.DataFrame]]
    open_items: Callable[[Path], pd.DataFrame]
    open_users: Callable[[Path], pd.DataFrame]

    @property
    def names(self) -> tuple[str, ...]:
        """All file names, the events' first."""
        return tuple(name for name in (self.events, self.items, self.users) if name is not None)

    def part(self, folder: Path) -> Part:
        """What of this format lies in `folder`; the events' file is taken to be there."""
        items, users = (
            folder / name if name is not None and (folder / name).is_file() else None
            for name in (self.items, self.users)
        )
        return Part(folder / self.events, items, users)


@dataclass(frozen=True)
class RawLog:
    """An opened log: the base, then its increments.

    `parts` are its files in order. `events` yields chunks of string columns EVENT_COLUMNS (missing
    where the log has none), `row` int64 from 0 through all parts, `part` int64, `line` int64 from 1
    in the part's file, and `ragged`. It can be walked once. `tables` has each file of items or
    users that was read: path, id column, rows. `items` has item_id, title and categories, `users`
    has user_id and whatever the source knows, a later part's row in place of an earlier one's;
    None where the source has no such table.
    """

    parts: tuple[Part, ...]
    events: Iterator[pd.DataFrame]
    tables: tuple[tuple[Path, str, pd.DataFrame], ...]
    items: pd.DataFrame | None
    users: pd.DataFrame | None

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
    if absent := [part.events for part in parts if not part.events.is_file()]:
        raise UserError(
            f"{', '.join(map(str, absent))} not found: an increment needs its events; bring it "
            "back with `dvc checkout data.dvc`"
        )
    chunks = [layout.open_events(part.events, chunk_rows) for part in parts]  # checks the headers
    items = [(part.items, layout.open_items(part.items)) for part in parts if part.items]
    users = [(part.users, layout.open_users(part.users)) for part in parts if part.users]
    return RawLog(
        parts=tuple(parts),
        events=_chain(chunks),
        tables=(
            *((path, ITEM, table) for path, table in items),
            *((path, USER, table) for path, table in users),
        ),
        items=_newest_rows([table for _, table in items], ITEM),
        users=_newest_rows([table for _, table in users], USER),
    )


def _chain(parts: Sequence[Iterator[pd.DataFrame]]) -> Iterator[pd.DataFrame]:
    rows = 0
    for number, chunks in enumerate(parts):
        for chunk in chunks:
            chunk[ROW] = np.arange(rows, rows + len(chunk))
            chunk[PART] = number
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

    def items(path: Path) -> pd.DataFrame:
        table = plain_whole(path, "::", "latin-1", [ITEM, TITLE, CATEGORIES])
        return table.assign(categories=_split(table[CATEGORIES], "|"))

    return Format(
        events="ratings.dat",
        items="movies.dat",
        users="users.dat",
        open_events=lambda path, rows: _ratings(plain_rows(path, "::", "latin-1"), rows),
        open_items=items,
        open_users=lambda path: plain_whole(
            path, "::", "latin-1", [USER, "gender", "age", "occupation", "zip"]
        ),
    )


def _movielens_100k(data: Data) -> Format:
    """GroupLens' ml-100k with the items table that `sources.py` makes; no headers."""

    def items(path: Path) -> pd.DataFrame:
        table = plain_whole(path, "\t", "utf-8", [ITEM, TITLE, CATEGORIES])
        return table.assign(categories=_split(table[CATEGORIES], "|"))

    return Format(
        events="u.data",
        items="items.tsv",
        users="u.user",
        open_events=lambda path, rows: _ratings(plain_rows(path, "\t", "utf-8"), rows),
        open_items=items,
        open_users=lambda path: plain_whole(
            path, "|", "utf-8", [USER, "age", "gender", "occupation", "zip"]
        ),
    )


def _ratings(rows: Iterator[tuple[int, list[str]]], chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Both MovieLens formats: user, item, rating, time."""
    places = {USER: 0, ITEM: 1, ACTION: 2, TIMESTAMP: 3}
    return text_chunks(rows, places, len(places), chunk_rows)


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
    """The user's own Parquet or CSV files, with the columns named in `data.columns`."""
    if data.interactions is None:
        raise UserError(
            "data.format is table, but data.interactions names no file: "
            f"set it in params.yaml to the file of events inside {data.path}"
        )
    mapped = data.columns
    columns = {name: getattr(mapped, name) for name in EVENT_COLUMNS if getattr(mapped, name)}

    def items(path: Path) -> pd.DataFrame:
        wanted = {ITEM: mapped.item_id, TITLE: mapped.title, CATEGORIES: mapped.categories}
        table = table_whole(path, {k: v for k, v in wanted.items() if v is not None})
        table = table.reindex(columns=[ITEM, TITLE, CATEGORIES])
        return table.assign(categories=_split(table[CATEGORIES], data.category_separator))

    def users(path: Path) -> pd.DataFrame:
        others = [name for name in header(path) if name != mapped.user_id]
        return table_whole(path, {USER: mapped.user_id} | _same(others))

    return Format(
        events=data.interactions,
        items=data.items,
        users=data.users,
        open_events=lambda path, rows: table_chunks(path, columns, rows),
        open_items=items,
        open_users=users,
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


def _require(data: Data, names: Sequence[str]) -> None:
    cure = f"run: hpgr fetch {data.path.name}"
    if data.format == "table":
        cure = "correct data.path and the file names in params.yaml"
    for name in names:
        require_file(data.path / name, cure)


def _split(values: pd.Series, separator: str) -> pd.Series:
    """Lists of the non-empty parts of each value; a value that is a list already is kept."""

    def parts(value: object) -> list[str]:
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
        return [str(part) for part in value if part] if isinstance(value, Iterable) else []

    return pd.Series([parts(value) for value in values], index=values.index, dtype=object)
