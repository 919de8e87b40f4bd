"""Raw folders of every known format, opened as canonical events plus items and users.

Reads: the folder `data.path`, through `tables.py`. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from hpgr.config import Data
from hpgr.data.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    ITEM,
    SESSION,
    TIMESTAMP,
    TITLE,
    USER,
)
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
class RawLog:
    """An opened raw folder.

    `files` are all files read. `events` yields chunks of string columns EVENT_COLUMNS (missing
    where the log has none), `row` int64 from 0, `line` int64 from 1, and `ragged`. It can be
    walked once. `items` has item_id, title and categories, `users` has user_id and whatever the
    source knows; None where the source has no such table.
    """

    files: tuple[Path, ...]
    events: Iterator[pd.DataFrame]
    items: pd.DataFrame | None
    users: pd.DataFrame | None


def read_raw(data: Data, chunk_rows: int) -> RawLog:
    """Open the raw folder that `data` describes; events come `chunk_rows` rows at a time at most.

    Raises:
        UserError: a file is missing or empty, or lacks a column.
    """
    return READERS[data.format](data, chunk_rows)


def _movielens_1m(data: Data, chunk_rows: int) -> RawLog:
    """GroupLens' ml-1m: fields separated by "::", Latin-1, no header."""
    ratings, movies, people = _files(data, "ratings.dat", "movies.dat", "users.dat")
    items = plain_whole(movies, "::", "latin-1", [ITEM, TITLE, CATEGORIES])
    return RawLog(
        files=(ratings, movies, people),
        events=_ratings(plain_rows(ratings, "::", "latin-1"), chunk_rows),
        items=items.assign(categories=_split(items[CATEGORIES], "|")),
        users=plain_whole(people, "::", "latin-1", [USER, "gender", "age", "occupation", "zip"]),
    )


def _movielens_100k(data: Data, chunk_rows: int) -> RawLog:
    """GroupLens' ml-100k with the items table that `sources.py` makes; no headers."""
    ratings, movies, people = _files(data, "u.data", "items.tsv", "u.user")
    items = plain_whole(movies, "\t", "utf-8", [ITEM, TITLE, CATEGORIES])
    return RawLog(
        files=(ratings, movies, people),
        events=_ratings(plain_rows(ratings, "\t", "utf-8"), chunk_rows),
        items=items.assign(categories=_split(items[CATEGORIES], "|")),
        users=plain_whole(people, "|", "utf-8", [USER, "age", "gender", "occupation", "zip"]),
    )


def _ratings(rows: Iterator[tuple[int, list[str]]], chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Both MovieLens formats: user, item, rating, time."""
    places = {USER: 0, ITEM: 1, ACTION: 2, TIMESTAMP: 3}
    return text_chunks(rows, places, len(places), chunk_rows)


def _complete_journey(data: Data, chunk_rows: int) -> RawLog:
    """Household -> user, product -> item, basket -> session; till times are read as UTC."""
    transactions, products, people = _files(
        data, "transactions.parquet", "products.parquet", "demographics.parquet"
    )
    levels = ["department", "product_category", "brand"]
    found = parquet_whole(products, {ITEM: "product_id", TITLE: "product_type"} | _same(levels))
    features = [c for c in pq.read_schema(people).names if c != "household_id"]
    columns = {
        USER: "household_id",
        ITEM: "product_id",
        TIMESTAMP: "transaction_timestamp",
        SESSION: "basket_id",
    }
    categories = [
        [value for value in values if isinstance(value, str)]
        for values in found[levels].itertuples(index=False, name=None)
    ]
    return RawLog(
        files=(transactions, products, people),
        events=parquet_chunks(transactions, columns, chunk_rows),
        items=found[[ITEM, TITLE]].assign(categories=pd.Series(categories, dtype=object)),
        users=parquet_whole(people, {USER: "household_id"} | _same(features)),
    )


def _table(data: Data, chunk_rows: int) -> RawLog:
    """The user's own Parquet or CSV files, with the columns named in `data.columns`."""
    if data.interactions is None:
        raise UserError(
            "data.format is table, but data.interactions names no file: "
            f"set it in params.yaml to the file of events inside {data.path}"
        )
    names = [n for n in (data.interactions, data.items, data.users) if n is not None]
    files = dict(zip(names, _files(data, *names), strict=True))
    mapped = data.columns
    columns = {name: getattr(mapped, name) for name in EVENT_COLUMNS if getattr(mapped, name)}
    items = users = None
    if data.items is not None:
        path = files[data.items]
        wanted = {ITEM: mapped.item_id, TITLE: mapped.title, CATEGORIES: mapped.categories}
        items = table_whole(path, {k: v for k, v in wanted.items() if v is not None})
        items = items.reindex(columns=[ITEM, TITLE, CATEGORIES])
        items[CATEGORIES] = _split(items[CATEGORIES], data.category_separator)
    if data.users is not None:
        path = files[data.users]
        others = [name for name in header(path) if name != mapped.user_id]
        users = table_whole(path, {USER: mapped.user_id} | _same(others))
    return RawLog(
        files=tuple(files.values()),
        events=table_chunks(files[data.interactions], columns, chunk_rows),
        items=items,
        users=users,
    )


READERS: dict[str, Callable[[Data, int], RawLog]] = {
    "movielens-1m": _movielens_1m,
    "movielens-100k": _movielens_100k,
    "complete-journey": _complete_journey,
    "table": _table,
}


def _same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def _files(data: Data, *names: str) -> list[Path]:
    paths = [data.path / name for name in names]
    if absent := [path for path in paths if not path.is_file()]:
        cure = (
            "correct data.path and the file names in params.yaml"
            if data.format == "table"
            else f"run: hpgr fetch {data.path.name}"
        )
        raise UserError(f"{', '.join(map(str, absent))} not found: {cure}")
    return paths


def _split(values: pd.Series, separator: str) -> pd.Series:
    """Lists of the non-empty parts of each value; a value that is a list already is kept."""

    def parts(value: object) -> list[str]:
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
        return [str(part) for part in value if part] if isinstance(value, Iterable) else []

    return pd.Series([parts(value) for value in values], index=values.index, dtype=object)
