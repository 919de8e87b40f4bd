"""`hpgr doctor PATH`: what is wrong with a log, line by line, before anything runs.

Reads: one file of events, items or users, or a whole raw folder. Writes: nothing but a scratch
file. The rules are those of the validate stage; added to them is what a stage could only refuse
as a whole: header, encoding, and which formats of time are mixed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    PART,
    ROW,
    TIMESTAMP,
    USER,
    Rule,
    prepare,
    row_rules,
    table_rules,
)
from hpgr.data.doctor_notes import notes
from hpgr.data.expectations import Expectations
from hpgr.data.formats import read_raw
from hpgr.data.raw_file import MAX_LINE, PARQUET, require_file, require_text
from hpgr.data.staging import copies, stage
from hpgr.data.tables import (
    LINE,
    header,
    repeated,
    suggestion,
    table_chunks,
)
from hpgr.runtime import UserError

LINES_PER_KIND = 5
CHUNK_ROWS = 1 << 18
NOT_WHOLE = "timestamp is not a whole number"
BOM = "\ufeff"
NOT_UTF8 = re.compile("[\udc80-\udcff]")

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


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what was found, what was expected, and the cure.

    `line` counts from 1 (of Parquet: the row) and is None where the whole file is meant. A
    problem that is not `serious` is only worth knowing: the file is read all the same. `more`
    says how many further lines have the same `kind` and are not listed.
    """

    file: Path
    kind: str
    line: int | None
    column: str | None
    found: str
    expected: str
    cure: str
    serious: bool = True
    more: int = 0

    def __str__(self) -> str:
        place = ", ".join(
            part
            for part in (
                str(self.file),
                f"line {self.line}" if self.line is not None else "",
                self.column or "",
            )
            if part
        )
        text = f"{place}: {self.kind}: found {self.found}, expected {self.expected}; {self.cure}"
        if not self.serious:
            text += " (a note: the file is read all the same)"
        return f"{text}\n  ... and {self.more:,} more lines of this kind" if self.more else text


def doctor(path: Path, cfg: Config, outlook: list[Problem] | None = None) -> list[Problem]:
    """What is wrong with `path`, in order of files and lines; empty where nothing is.

    `path` is a raw folder in the format that `cfg.data` names, or one Parquet or CSV file with
    the columns of `cfg.data.columns`: of items or users where it has the name that `cfg.data`
    gives to such a file, else of events. At most LINES_PER_KIND lines are listed for each kind.
    `outlook` takes in what nothing is wrong with, but worth knowing before training.
    """
    outlook = [] if outlook is None else outlook
    if path.is_dir() and cfg.data.format != "table":
        return _examine_log(cfg.data.model_copy(update={"path": path}), cfg, outlook)
    data = cfg.data.model_copy(update={"format": "table"})
    if path.is_dir():
        names = [n for n in (data.interactions, data.items, data.users) if n is not None]
        return [p for name in names for p in _examine_file(path / name, data, cfg, outlook)]
    return _examine_file(path, data, cfg, outlook)


def _examine_file(path: Path, data: Data, cfg: Config, outlook: list[Problem]) -> list[Problem]:
    if not path.exists() and not path.is_symlink():
        return [_whole_file(path, "missing", "nothing", "a file or folder", "correct the path")]
    try:
        require_file(path, "correct the path")
        if path.suffix not in PARQUET:
            require_text(path)
    except UserError as error:
        return [_unreadable(path, error)]
    problems = _examine_text(path) if path.suffix not in PARQUET else []
    if not any(p.serious for p in problems):
        problems += _examine_header(path, data)
    if any(p.serious for p in problems):
        return problems
    if path.name == data.items or path.name == data.users:
        return problems + _examine_table(path, data)
    beside = {
        role: name if name is not None and (path.parent / name).is_file() else None
        for role, name in (("items", data.items), ("users", data.users))
    }
    log = data.model_copy(update={"path": path.parent, "interactions": path.name, **beside})
    return problems + _examine_log(log, cfg, outlook)


def _whole_file(path: Path, kind: str, found: str, expected: str, cure: str) -> Problem:
    return Problem(path, kind, None, None, found, expected, cure)


def _examine_text(path: Path) -> list[Problem]:
    """Encoding, line ends and length of the lines of a text file."""
    crlf = number = 0
    unreadable, bad = [], []
    bom: list[Problem] = []
    # Bytes that are no UTF-8 come as lone surrogates, to be told with their lines.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            crlf += line.endswith("\r\n")
            if number == 1 and line.startswith(BOM):
                found = "EF BB BF before the header"
                cure = "save without it"
                bom = [Problem(path, "byte order mark", 1, None, found, "none", cure, False)]
            if not line.isascii() and (byte := NOT_UTF8.search(line)):
                unreadable.append((number, f"byte {ord(byte[0]) - 0xDC00:02X}"))
            if "\0" in line:
                cure = "the file is damaged or no text: export it anew"
                bad.append(Problem(path, "NUL", number, None, "byte 00", "text", cure))
            if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                found = f"more than {MAX_LINE:,} characters"
                cure = "look for lost line breaks"
                bad.append(
                    Problem(path, "endless line", number, None, found, "one row a line", cure)
                )
                break
    problems = bom
    if crlf:
        found = f"CRLF in {crlf:,} of {number:,} lines"
        problems.append(
            Problem(path, "Windows line ends", None, None, found, "LF", "save with LF", False)
        )
    problems += _capped(
        Problem(path, "not UTF-8", number, None, byte, "UTF-8 text", "save the file as UTF-8")
        for number, byte in unreadable
    )
    return problems + _capped(bad)


def _columns_of(path: Path, data: Data) -> dict[str, str]:
    """Columns that the file must have by its role, ours -> theirs."""
    mapped = data.columns
    if path.name == data.users:
        wanted = [USER]
    elif path.name == data.items:
        wanted = [ITEM, "title", "categories"]
    else:
        wanted = list(EVENT_COLUMNS)
    return {name: getattr(mapped, name) for name in wanted if getattr(mapped, name) is not None}


def _examine_header(path: Path, data: Data) -> Iterator[Problem]:
    try:
        names = header(path)
    except UserError as error:
        yield _unreadable(path, error)
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
    for wanted, name in _columns_of(path, data).items():
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
        """`files` are those of the parts that the rows are from."""
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
                    file=self._files[row.get(PART, 0)],
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
        chunks = list(table_chunks(path, columns, chunk_rows=CHUNK_ROWS))
    except UserError as error:
        return [_unreadable(path, error)]
    if not chunks:
        return [_no_rows(path)]
    return _examine_rows(path, columns, pd.concat(chunks, ignore_index=True), key)


def _examine_rows(
    path: Path, columns: dict[str, str], frame: pd.DataFrame, key: str
) -> list[Problem]:
    rules = (FIELDS_RULE, *table_rules(key))
    expectations, listing = Expectations(), _Listing([path], columns)
    expectations.add("table", rules)
    listing.add(frame, expectations.check("table", frame), rules)
    return listing.problems()


def _examine_log(data: Data, cfg: Config, outlook: list[Problem]) -> list[Problem]:
    """Every row of the events that `data` names, by the rules of the validate stage."""
    rules, shapes = row_rules(cfg.validate_), Counter[str]()
    try:
        raw = read_raw(data, cfg.validate_.chunk_rows)
    except UserError as error:
        return [_unreadable(data.path / (data.interactions or ""), error)]
    path = raw.files[0]
    columns = {name: name for name in EVENT_COLUMNS}
    if data.format == "table":
        columns = _columns_of(path, data)
    listing = _Listing([part.events for part in raw.parts], columns)
    expectations = Expectations()
    expectations.add("events", rules)
    known = None if raw.items is None else pd.Index(raw.items[ITEM].dropna().unique())
    with tempfile.TemporaryDirectory(prefix="hpgr-doctor-") as scratch:
        staged = Path(scratch) / "staged.parquet"
        try:
            stage(raw.events, staged)
        except UserError as error:
            return [_unreadable(path, error)]
        (within, repeated), now = copies(staged), int(time())
        with pq.ParquetFile(staged) as file:
            if file.metadata.num_rows == 0:
                return [_no_rows(path)]
            for batch in file.iter_batches(cfg.validate_.chunk_rows):
                chunk = prepare(
                    batch.to_pandas(), now=now, copies=within, repeated=repeated, known_items=known
                )
                listing.add(chunk, expectations.check("events", chunk), rules)
                shapes.update(_shapes(chunk[TIMESTAMP]).value_counts().to_dict())
        outlook += [
            Problem(path, n.kind, None, columns.get(n.column), n.found, n.expected, n.cure, False)
            for n in notes(staged, cfg)
        ]
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


def _capped(problems: Iterable[Problem]) -> list[Problem]:
    found = list(problems)
    listed, more = found[:LINES_PER_KIND], len(found) - LINES_PER_KIND
    if more > 0:
        listed[-1] = replace(listed[-1], more=more)
    return listed


def _unreadable(path: Path, error: UserError) -> Problem:
    return _whole_file(path, "unreadable", str(error), "a readable table", "mend it and try again")


def _no_rows(path: Path) -> Problem:
    return _whole_file(path, "no rows", "a header alone", "rows below it", "export the file anew")
