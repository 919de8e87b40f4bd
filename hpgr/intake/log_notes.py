"""Notes on the ids, actions and copies of a log; none of them refuses it.

Reads the staged rows (`staging.py`) with DuckDB. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from duckdb import DuckDBPyConnection

from hpgr.data.labels import unread
from hpgr.intake.contract import ACTION, EVENTS, ITEM, SESSION, UNKNOWN_ITEM, USER
from hpgr.intake.file_problems import FileProblem, note
from hpgr.intake.raw_log import RawLog
from hpgr.intake.spelling import plain_words
from hpgr.intake.staging import open_duckdb, query

if TYPE_CHECKING:
    from hpgr.config import Sessionize
    from hpgr.intake.screening import Counts

# Words that may be an id or may mean "no value"; case does not matter.
PLACEHOLDERS = (
    *("na", "n/a", "#na", "nil", "none", "null", "(null)", "(none)", "nan", "-", "--", "?", "."),
    *("unknown", "undefined", "missing", "empty", "(blank)", "not set", "(not set)", "no value"),
    *("not available", "anonymous", "guest", "#value!", "#ref!", "#null!", "#name?", "#num!"),
)
LARGE_SHARE = 0.01  # of the rows: a rarer id does no harm
TOWERS_BY = 10  # an id with so many times the rows of the next is hardly one user or item
MANY_COPIES = 0.1  # of the rows: more than double clicks, rather a log written twice
ACTIONS_READ = 10_000  # most frequent kinds; the sessionize stage allows far fewer


def notes_on_log(
    raw: RawLog,
    staged: Path,
    columns: Mapping[str, str],
    mended: Iterable[tuple[int, str]],
    counts: Counts,
    items: pd.DataFrame | None,
    items_file: Path | None,
) -> list[FileProblem]:
    """All notes but those on actions, after the rows were checked.

    `counts` are the results of the check, `items` the known items, if any, and `items_file` their
    file; for the others see `notes_on_rows`.
    """
    files = [part[EVENTS] for part in raw.parts]
    notes = [*raw.notes, *notes_on_rows(staged, files, columns, mended)]
    if counts.duplicates > MANY_COPIES * counts.rows:
        share = counts.duplicates / counts.rows
        found = f"{counts.duplicates:,} of {counts.rows:,} rows ({share:.1%}) are copies of others"
        fix = "they are left out; check whether the log was written twice"
        notes.append(note(files[0], "many exact duplicates", None, found, "few", fix))
    if items is not None and items_file is not None:
        unknown = [row[ITEM] for row in counts.examples.get(UNKNOWN_ITEM, [])]
        notes += notes_on_spelling(unknown, items[ITEM], files[0], items_file)
    return notes


def notes_on_rows(
    staged: Path,
    files: Sequence[Path],
    columns: Mapping[str, str],
    mended: Iterable[tuple[int, str]],
) -> list[FileProblem]:
    """Notes on the ids of the staged rows.

    Args:
        staged: the rows.
        files: the file of each part.
        columns: name in the file of each of our columns.
        mended: what `mend_ids` changed.
    """
    found = "every id is a whole number, some of them with .0"
    notes = [
        note(
            files[part],
            "whole numbers with a point",
            columns[column],
            found,
            "whole numbers",
            "they are read without .0",
        )
        for part, column in mended
    ]
    with open_duckdb(staged.parent) as connection:
        for column in (USER, ITEM, SESSION):
            kind = column.removesuffix("_id")
            notes += [
                note(
                    files[0],
                    f"id that may mean no {kind}",
                    columns[column],
                    f"{word!r} in {count:,} of {rows:,} rows ({count / rows:.1%})",
                    f"an id for each {kind}",
                    f"it counts as one {kind}; if it means that there is none, leave the cell "
                    "empty",
                )
                for word, count, rows in _placeholders(connection, staged, column)
            ]
    return notes


def _placeholders(
    connection: DuckDBPyConnection, staged: Path, column: str
) -> list[tuple[str, int, int]]:
    """Ids that may mean "no value", the rows of each, and all rows that have an id."""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE counts AS SELECT {column} AS id, count(*) AS n, "
        "sum(n) OVER ()::BIGINT AS rows "
        f"FROM read_parquet(?) WHERE {column} NOTNULL GROUP BY 1",
        [str(staged)],
    )
    largest = connection.execute("FROM counts ORDER BY n DESC, id LIMIT 2").fetchall()
    words = connection.execute(
        "FROM counts WHERE lower(trim(id)) IN (SELECT unnest(?)) ORDER BY n DESC, id",
        [list(PLACEHOLDERS)],
    ).fetchall()
    found = [row for row in words if row[1] >= LARGE_SHARE * row[2] or row == largest[0]]
    towers = len(largest) > 1 and largest[0][1] >= TOWERS_BY * largest[1][1]
    if column != SESSION and towers and largest[0] not in found:
        found.append(largest[0])
    return found


def notes_on_spelling(
    unknown: Iterable[str], known: pd.Series, log: Path, items: Path
) -> list[FileProblem]:
    """A note if `items`, which has the ids `known`, has an unknown id of `log` otherwise spelt."""
    if not (asked := list(dict.fromkeys(unknown))):
        return []
    known = known.dropna()
    spellings = dict(zip(_folded(pd.Series(known, dtype="str")), known, strict=True))
    for one, folded in zip(asked, _folded(pd.Series(asked, dtype="str")), strict=True):
        if (other := spellings.get(folded)) is not None:
            to_change = max((items, other), (log, one), key=lambda pair: _blemishes(pair[1]))[0]
            return [
                note(
                    to_change,
                    "ids in another spelling",
                    None,
                    f"item {one!r} in {log} and {other!r} in {items}",
                    "one spelling in both",
                    f"export the ids of {to_change} again, as the other file writes them",
                )
            ]
    return []


def _folded(ids: pd.Series) -> pd.Series:
    plain = plain_words(ids.str.strip().str.lower())
    return plain.str.replace(r"^0+(?=.)", "", regex=True)


def _blemishes(spelling: str) -> tuple[bool, bool, int]:
    """Signs that a spelling is the altered one: a point, spaces, lost leading zeros."""
    zeros = len(spelling) - len(spelling.lstrip("0"))
    return spelling.endswith(".0"), spelling != spelling.strip(), -zeros


def notes_on_actions(
    staged: Path, file: Path, column: str, settings: Sessionize
) -> list[FileProblem]:
    """A note if labels should come from numbers and many actions are none."""
    counts = query(
        staged.parent,
        f"SELECT {ACTION}, count(*) AS n FROM read_parquet(?) WHERE {ACTION} NOTNULL "
        f"GROUP BY 1 ORDER BY n DESC, 1 LIMIT {ACTIONS_READ}",
        staged,
    )
    if (found := unread(dict(counts), settings)) is None:
        return []
    return [note(file, "actions that are no numbers", column, *found)]
