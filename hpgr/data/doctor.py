"""`hpgr doctor PATH`: what is wrong with a log, line by line, before anything runs.

Reads: one file of events, items or users, or a whole raw folder. Writes: nothing but a scratch
file. The rules are those of the validate stage; added to them is what a stage could only refuse
as a whole: header, encoding, and which formats of time are mixed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hpgr.config import Config, Data
from hpgr.data.contract import (
    ACTION,
    EVENT_COLUMNS,
    FIELDS_RULE,
    ITEM,
    ROW,
    TIMESTAMP,
    USER,
    Rule,
    prepare,
    row_rules,
    table_rules,
)
from hpgr.data.expectations import Expectations
from hpgr.data.formats import read_raw
from hpgr.data.problems import (
    LINES_PER_KIND,
    Problem,
    dialect_problems,
    no_rows,
    text_problems,
    unreadable,
    whole_file,
)
from hpgr.data.raw_file import (
    PARQUET,
    Absent,
    holds_parts,
    partition_of,
    parts_of,
    require_path,
    require_text,
)
from hpgr.data.staging import copies, stage
from hpgr.data.tables import (
    LINE,
    SOURCE,
    header,
    repeated,
    suggestion,
    table_chunks,
)
from hpgr.runtime import UserError

CHUNK_ROWS = 1 << 18
NOT_WHOLE = "timestamp is not a whole number"

# Shapes of what stands where epoch seconds should; the first that fits names the value.
SHAPES = (
    ("epoch seconds", re.compile(r"-?[0-9]{1,11}(?:\.0*)?")),
    ("epoch milliseconds or finer", re.compile(r"-?[0-9]{12,}(?:\.0*)?")),
    ("epoch seconds with a fraction", re.compile(r"-?[0-9]+\.[0-9]+")),
    ("scientific notation", re.compile(r"-?[0-9]+(?:[.,][0-9]+)?[eE]\+?[0-9]+")),
    ("a date", re.compile(r"[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}.*")),
)
CURES = {
    "epoch seconds with a fraction": "cut the fraction off: int(value)",
    "scientific notation": "a spreadsheet lost digits: export the column as a number again",
    "a date": "convert it: pandas.to_datetime(column, utc=True).astype('datetime64[s, UTC]')"
    ".astype('int64')",
}


def doctor(path: Path, cfg: Config) -> list[Problem]:
    """What is wrong with `path`, in order of files and lines; empty where nothing is.

    `path` is a raw folder in the format that `cfg.data` names, or one table with the columns of
    `cfg.data.columns`, a Parquet or CSV file or a folder of such parts: of items or users where it
    has the name that `cfg.data` gives to such a table, else of events. At most LINES_PER_KIND lines
    are listed for each kind.
    """
    if refused := _refused(path):
        return refused
    data = cfg.data.model_copy(update={"format": "table"})
    names = [n for n in (data.interactions, data.items, data.users) if n is not None]
    is_log = any((path / name).exists() for name in names)
    if path.is_dir() and (is_log or not (holds_parts(path) or path.name in names)):
        if cfg.data.format != "table":
            return _examine_log(cfg.data.model_copy(update={"path": path}), cfg)
        return [p for name in names for p in _examine_file(path / name, data, cfg)]
    return _examine_file(path, data, cfg)


def _refused(path: Path) -> list[Problem]:
    """What is wrong with a path that cannot be read at all."""
    try:
        require_path(path, "correct the path")
    except Absent:
        return [whole_file(path, "missing", "nothing", "a file or folder", "correct the path")]
    except UserError as error:
        return [unreadable(path, error)]
    return []


def _examine_file(path: Path, data: Data, cfg: Config) -> list[Problem]:
    if refused := _refused(path):
        return refused
    problems: list[Problem] = []
    try:
        for part in parts_of(path):
            problems += _examine_part(part, path, data)
    except UserError as error:
        return [*problems, unreadable(path, error)]
    if any(p.serious for p in problems):
        return problems
    if path.name == data.items or path.name == data.users:
        return problems + _examine_table(path, data)
    beside = {
        role: name if name is not None and (path.parent / name).exists() else None
        for role, name in (("items", data.items), ("users", data.users))
    }
    log = data.model_copy(update={"path": path.parent, "interactions": path.name, **beside})
    return problems + _examine_log(log, cfg)


def _examine_part(part: Path, table: Path, data: Data) -> list[Problem]:
    """One file of a table: its text, its header and its dialect."""
    if part.suffix in PARQUET:
        return list(_examine_header(part, table, data))
    try:
        require_text(part)
    except UserError as error:
        return [unreadable(part, error)]
    problems = text_problems(part)
    if not any(p.serious for p in problems):
        problems += _examine_header(part, table, data)
    if not any(p.serious for p in problems):
        problems += dialect_problems(part, data.quoting)
    return problems


def _columns_of(table: Path, data: Data) -> dict[str, str]:
    """Columns that the table must have by its role, ours -> theirs."""
    mapped = data.columns
    if table.name == data.users:
        wanted = [USER]
    elif table.name == data.items:
        wanted = [ITEM, "title", "categories"]
    else:
        wanted = list(EVENT_COLUMNS)
    return {name: getattr(mapped, name) for name in wanted if getattr(mapped, name) is not None}


def _examine_header(path: Path, table: Path, data: Data) -> Iterator[Problem]:
    """The columns of one file of a table."""
    try:
        names = header(path)
    except UserError as error:
        yield unreadable(path, error)
        return
    for name in repeated(names):
        places = [str(n + 1) for n, other in enumerate(names) if other == name]
        yield Problem(
            path,
            "repeated column",
            1,
            name,
            f"it in places {', '.join(places)}",
            "each name once",
            "rename or drop the copies",
        )
    names += [name for name in partition_of(path, table) if name not in names]
    for wanted, name in _columns_of(table, data).items():
        if name not in names:
            yield Problem(
                path,
                "missing column",
                1,
                name,
                f"the columns {', '.join(names)}",
                f"one named {name!r}",
                suggestion(wanted, name, names),
            )


class _Listing:
    """Problems of one file's rows, capped for each kind."""

    def __init__(self, files: Sequence[Path], columns: dict[str, str]) -> None:
        """`files` are those that the rows are from, by their `source`."""
        self._files, self._columns = files, columns
        self._listed: dict[str, list[Problem]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, frame: pd.DataFrame, found: dict[str, np.ndarray], rules: Sequence[Rule]) -> None:
        """Take in the rows of `frame` that break each of `rules`."""
        for rule in rules:
            rows = frame.iloc[found.get(rule.name, [])]
            if rule.name == NOT_WHOLE:
                shapes = _shapes(rows[TIMESTAMP])
                for shape in shapes.unique():
                    kind, cure = f"timestamp is {shape}", CURES.get(shape, rule.cure)
                    self._note(replace(rule, name=kind, cure=cure), rows[shapes == shape])
            else:
                self._note(rule, rows)

    def _note(self, rule: Rule, rows: pd.DataFrame) -> None:
        listed = self._listed.setdefault(rule.name, [])
        for _, row in rows.head(LINES_PER_KIND - len(listed)).iterrows():
            listed.append(
                Problem(
                    file=self._files[row.get(SOURCE, 0)],
                    kind=rule.name,
                    line=int(row[LINE]),
                    column=self._columns.get(rule.column),
                    found=_found(rule, row),
                    expected=rule.expected,
                    cure=rule.cure,
                    serious=rule.gate,
                )
            )
        self._counts[rule.name] += len(rows)

    def problems(self) -> list[Problem]:
        """All in order of files and lines; the last of a kind says how many more there are."""
        for kind, listed in self._listed.items():
            if more := self._counts[kind] - len(listed):
                listed[-1] = replace(listed[-1], more=more)
        order = {file: number for number, file in enumerate(self._files)}
        found = (p for ps in self._listed.values() for p in ps)
        return sorted(found, key=lambda p: (order[p.file], p.line or 0))


def _found(rule: Rule, row: pd.Series) -> str:
    if rule.column == ROW:
        return "a copy of an earlier line: " + ", ".join(
            str(row[name]) for name in (USER, ITEM, TIMESTAMP, ACTION) if not pd.isna(row[name])
        )
    value = row[rule.column]
    return "nothing (empty, or a word such as nan or null)" if pd.isna(value) else repr(value)


def _shapes(values: pd.Series) -> pd.Series:
    """What each value looks like, by SHAPES; missing values are left out."""
    present = values.dropna()
    shapes = pd.Series("no number", index=present.index, dtype=object)
    for name, pattern in reversed(SHAPES):
        shapes[present.str.fullmatch(pattern)] = name
    return shapes


def _examine_table(path: Path, data: Data) -> list[Problem]:
    """Ids of a file of items or users."""
    key = ITEM if path.name == data.items else USER
    columns = {key: _columns_of(path, data)[key]}
    try:
        chunks = list(table_chunks(path, columns, CHUNK_ROWS, data.quoting))
    except UserError as error:
        return [unreadable(path, error)]
    if not chunks:
        return [no_rows(path)]
    return _examine_rows(path, columns, pd.concat(chunks, ignore_index=True), key)


def _examine_rows(
    path: Path, columns: dict[str, str], frame: pd.DataFrame, key: str
) -> list[Problem]:
    rules = (FIELDS_RULE, *table_rules(key))
    expectations, listing = Expectations(), _Listing(parts_of(path), columns)
    expectations.add("table", rules)
    listing.add(frame, expectations.check("table", frame), rules)
    return listing.problems()


def _examine_log(data: Data, cfg: Config) -> list[Problem]:
    """Every row of the events that `data` names, by the rules of the validate stage."""
    rules, shapes = row_rules(cfg.validate_), Counter[str]()
    try:
        raw = read_raw(data, cfg.validate_.chunk_rows)
    except UserError as error:
        return [unreadable(data.path / (data.interactions or ""), error)]
    path = raw.parts[0].events
    columns = {name: name for name in EVENT_COLUMNS}
    if data.format == "table":
        columns = _columns_of(path, data)
    listing = _Listing(raw.sources, columns)
    expectations = Expectations()
    expectations.add("events", rules)
    known = None if raw.items is None else pd.Index(raw.items[ITEM].dropna().unique())
    with tempfile.TemporaryDirectory(prefix="hpgr-doctor-") as scratch:
        staged = Path(scratch) / "staged.parquet"
        try:
            stage(raw.events, staged)
        except UserError as error:
            return [unreadable(path, error)]
        (within, repeated), now = copies(staged), int(time())
        with pq.ParquetFile(staged) as file:
            if file.metadata.num_rows == 0:
                return [no_rows(path)]
            for batch in file.iter_batches(cfg.validate_.chunk_rows):
                chunk = prepare(
                    batch.to_pandas(), now=now, copies=within, repeated=repeated, known_items=known
                )
                listing.add(chunk, expectations.check("events", chunk), rules)
                shapes.update(_shapes(chunk[TIMESTAMP]).value_counts().to_dict())
    problems = [*_mixed(path, columns[TIMESTAMP], shapes), *listing.problems()]
    if data.format != "table":
        for file_path, key, table in raw.tables:
            frame = table[[key]].assign(line=np.arange(1, len(table) + 1), ragged=None)
            problems += _examine_rows(file_path, {key: key}, frame, key)
    return problems


def _mixed(path: Path, column: str, shapes: Counter[str]) -> Iterator[Problem]:
    if len(shapes) > 1:
        found = ", ".join(f"{count:,} x {shape}" for shape, count in shapes.most_common())
        yield Problem(
            path,
            "mixed formats of time",
            None,
            column,
            found,
            "epoch seconds throughout",
            "find out where the log changes its format, and convert the rest",
        )
