"""Raw folders of every known format, opened as canonical events plus items and users.

A log is a base and, beside it, increments: folders with files of the same format, of which only
the events need be there. Reads: the folder `data.path`, through `tables.py`. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hpgr.config import Data
from hpgr.data.cells import split
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
from hpgr.data.problems import Problem, note
from hpgr.data.raw_file import require_file
from hpgr.data.spelling import DIGITS_LOST, plain_words, whole_numbers
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


# A table of items or users, and what to know of how it was read.
Opened = tuple[pd.DataFrame, list[Problem]]


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
    open_items: Callable[[Path], Opened]
    open_users: Callable[[Path], Opened]

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
    None where the source has no such table. `notes` say what to know of how the tables were read.
    """

    parts: tuple[Part, ...]
    events: Iterator[pd.DataFrame]
    tables: tuple[tuple[Path, str, pd.DataFrame], ...]
    items: pd.DataFrame | None
    users: pd.DataFrame | None
    notes: tuple[Problem, ...]

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
    items = [(part.items, *layout.open_items(part.items)) for part in parts if part.items]
    users = [(part.users, *layout.open_users(part.users)) for part in parts if part.users]
    tables, notes = [], []
    for key, opened in ((ITEM, items), (USER, users)):
        for path, table, found in opened:
            table[key] = whole_ids(path, key, table[key])
            tables.append((path, key, table))
            notes += found
    return RawLog(
        parts=tuple(parts),
        events=_chain(chunks),
        tables=tuple(tables),
        items=_newest_rows([table for _, table, _ in items], ITEM),
        users=_newest_rows([table for _, table, _ in users], USER),
        notes=tuple(notes),
    )


def _chain(parts: Sequence[Iterator[pd.DataFrame]]) -> Iterator[pd.DataFrame]:
    rows = 0
    for number, chunks in enumerate(parts):
        for chunk in chunks:
            chunk[ROW] = np.arange(rows, rows + len(chunk))
            chunk[PART] = number
            chunk[ACTION] = plain_words(chunk[ACTION])
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

    def items(path: Path) -> Opened:
        table = plain_whole(path, "::", "latin-1", [ITEM, TITLE, CATEGORIES])
        return _with_lists(path, table, "|", [])

    return Format(
        events="ratings.dat",
        items="movies.dat",
        users="users.dat",
        open_events=lambda path, rows: _ratings(plain_rows(path, "::", "latin-1"), rows),
        open_items=items,
        open_users=lambda path: (
            plain_whole(path, "::", "latin-1", [USER, "gender", "age", "occupation", "zip"]),
            [],
        ),
    )


def _movielens_100k(data: Data) -> Format:
    """GroupLens' ml-100k with the items table that `sources.py` makes; no headers."""

    def items(path: Path) -> Opened:
        table = plain_whole(path, "\t", "utf-8", [ITEM, TITLE, CATEGORIES])
        return _with_lists(path, table, "|", [])

    return Format(
        events="u.data",
        items="items.tsv",
        users="u.user",
        open_events=lambda path, rows: _ratings(plain_rows(path, "\t", "utf-8"), rows),
        open_items=items,
        open_users=lambda path: (
            plain_whole(path, "|", "utf-8", [USER, "age", "gender", "occupation", "zip"]),
            [],
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

    def items(path: Path) -> Opened:
        wanted = {ITEM: mapped.item_id, TITLE: mapped.title, CATEGORIES: mapped.categories}
        table, notes = table_whole(path, {k: v for k, v in wanted.items() if v is not None})
        table = table.reindex(columns=[ITEM, TITLE, CATEGORIES])
        return _with_lists(path, table, data.category_separator, notes, mapped.categories)

    def users(path: Path) -> Opened:
        columns, notes = _features(path, mapped.user_id)
        table, found = table_whole(path, columns)
        return table, notes + found

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


def column_names(data: Data) -> dict[str, str]:
    """What the events' file calls each of our columns; our own names where its format has none."""
    mapped = data.columns.model_dump() if data.format == "table" else {}
    return {name: mapped.get(name) or name for name in EVENT_COLUMNS}


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def _require(data: Data, names: Sequence[str]) -> None:
    cure = f"run: hpgr fetch {data.path.name}"
    if data.format == "table":
        cure = "correct data.path and the file names in params.yaml"
    for name in names:
        require_file(data.path / name, cure)


def whole_ids(path: Path, key: str, ids: pd.Series) -> pd.Series:
    """`whole_numbers` of an id column of a file.

    Raises:
        UserError: the digits of one were lost in a float.
    """
    try:
        return whole_numbers(ids)
    except ValueError as error:
        raise UserError(f"{path}: {key} holds {error}: {DIGITS_LOST}") from error


def _with_lists(
    path: Path,
    table: pd.DataFrame,
    separator: str,
    notes: list[Problem],
    column: str | None = CATEGORIES,
) -> Opened:
    """The items with a list of categories in each row."""
    lists, found = split(table[CATEGORIES], separator)
    if found:
        cure = "look whether that is what they mean; write every cell the same way"
        expected = f"values separated by {separator!r}"
        notes = [*notes, note(path, "lists as text", column, found, expected, cure)]
    return table.assign(categories=lists), notes


def _features(path: Path, key: str) -> tuple[dict[str, str], list[Problem]]:
    """All columns of a users file, ours -> theirs: `key` is the user, whatever else is called so.

    Columns are called alike where they differ in upper and lower case only, as in DuckDB.
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
            cure = f"it is kept as the feature {ours!r}"
            notes.append(note(path, "second id", name, found, "one id column", cure))
    return columns, notes
