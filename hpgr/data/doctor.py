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
from dataclasses import replace
from pathlib import Path
from time import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hpgr.config import Config, Data
from hpgr.data.contract import (
    ACTION,
    CATEGORIES,
    EVENT_COLUMNS,
    FIELDS_RULE,
    ITEM,
    PART,
    ROW,
    TIMESTAMP,
    TITLE,
    UNKNOWN_ITEM,
    USER,
    Rule,
    prepare,
    row_rules,
    table_rules,
)
from hpgr.data.expectations import Expectations
from hpgr.data.formats import Format, column_names, format_of, read_raw, whole_ids
from hpgr.data.notes import notes_on_actions, notes_on_rows, notes_on_spelling
from hpgr.data.problems import Problem
from hpgr.data.raw_file import MAX_LINE, PARQUET, require_file, require_text
from hpgr.data.staging import copies, mend_ids, stage
from hpgr.data.tables import (
    LINE,
    header,
    repeated,
    suggestion,
    table_chunks,
)
from hpgr.data.times import CURES, advice, kinds_of_dates, shapes
from hpgr.runtime import UserError

LINES_PER_KIND = 5
CHUNK_ROWS = 1 << 18
NOT_WHOLE = "timestamp is not a whole number"
DATE = "timestamp is a date"
KINDS_OF_DATES = 500
EVENTS = "events"  # the role of a file; those of items and users are their id columns
BOM = "\ufeff"
NOT_UTF8 = re.compile("[\udc80-\udcff]")


def doctor(path: Path, cfg: Config) -> list[Problem]:
    """What is wrong with `path`, in order of files and lines; empty where nothing is.

    `path` is a raw folder in the format that `cfg.data` names, or one Parquet or CSV file with
    the columns of `cfg.data.columns`: of items or users where it has the name that `cfg.data`
    gives to such a file, else of events. At most LINES_PER_KIND lines are listed for each kind.
    """
    if path.is_dir() and cfg.data.format != "table":
        return _examine_log(cfg.data.model_copy(update={"path": path}), cfg)
    data = cfg.data.model_copy(update={"format": "table", "path": path})
    if path.is_dir():
        named = ((EVENTS, data.interactions), (ITEM, data.items), (USER, data.users))
        roles = {role: path / name for role, name in named if name is not None}
        return [p for role in roles for p in _examine_file(roles[role], role, data, cfg)]
    role, folder = _role(path, data)
    data = data.model_copy(update={"path": folder})
    if role == EVENTS:
        beside = {
            kind: name if name is not None and (folder / name).is_file() else None
            for kind, name in (("items", data.items), ("users", data.users))
        }
        name = path.relative_to(folder).as_posix()
        data = data.model_copy(update={"interactions": name, **beside})
    return _examine_file(path, role, data, cfg)


def _role(path: Path, data: Data) -> tuple[str, Path]:
    """What the file at `path` holds by its name, and the raw folder that it lies in."""
    named = ((EVENTS, data.interactions), (ITEM, data.items), (USER, data.users))
    for role, name in named:
        if name is not None and path.parts[-len(Path(name).parts) :] == Path(name).parts:
            return role, path.parents[len(Path(name).parts) - 1]
    for role, name in named[1:]:
        if name is not None and path.name == Path(name).name:
            return role, path.parent
    return EVENTS, path.parent


def _examine_file(path: Path, role: str, data: Data, cfg: Config) -> list[Problem]:
    problems = _examine_shape(path, role, data)
    if any(p.serious for p in problems):
        return problems
    if role != EVENTS:
        return problems + _examine_table(path, role, data)
    # Users say nothing about events; items do, but what is wrong with their file is said of it.
    data = data.model_copy(update={"users": None})
    if data.items is not None and _faults_of_items(data.path / data.items, data):
        data = data.model_copy(update={"items": None})
    return problems + _examine_log(data, cfg)


def _faults_of_items(path: Path, data: Data) -> bool:
    """Whether the items cannot be read."""
    if any(p.serious for p in _examine_shape(path, ITEM, data)):
        return True
    try:
        format_of(data).open_items(path)
    except UserError:
        return True
    return False


def _examine_shape(path: Path, role: str, data: Data) -> list[Problem]:
    """What can be said before a row is read: that the file is there, its encoding, its header."""
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
        problems += _examine_header(path, role, data)
    return problems


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


def _columns_of(role: str, data: Data) -> dict[str, str]:
    """Columns that the file must have by its role, ours -> theirs."""
    mapped = data.columns
    wanted = {USER: [USER], ITEM: [ITEM, TITLE, CATEGORIES]}.get(role, EVENT_COLUMNS)
    return {name: getattr(mapped, name) for name in wanted if getattr(mapped, name) is not None}


def _examine_header(path: Path, role: str, data: Data) -> Iterator[Problem]:
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
    for wanted, name in _columns_of(role, data).items():
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
        self._dates: list[str] = []

    def add(self, frame: pd.DataFrame, found: dict[str, np.ndarray], rules: Sequence[Rule]) -> None:
        """Take in the rows of `frame` that break each of `rules`."""
        for rule in rules:
            rows = frame.iloc[found.get(rule.name, [])]
            if rule.name == NOT_WHOLE:
                found_shapes = shapes(rows[TIMESTAMP])
                for shape in found_shapes.unique():
                    kind, cure = f"timestamp is {shape}", CURES.get(shape, rule.cure)
                    shaped = rows[found_shapes == shape]
                    self._note(replace(rule, name=kind, cure=cure), shaped)
                    if kind == DATE:
                        kinds = pd.Series([*self._dates, *shaped[TIMESTAMP]], dtype="str")
                        self._dates = kinds_of_dates(kinds)[:KINDS_OF_DATES]
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
        if self._dates:
            how = advice(self._dates)
            self._listed[DATE] = [replace(p, cure=how) for p in self._listed[DATE]]
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


def _examine_table(path: Path, key: str, data: Data) -> list[Problem]:
    """Ids of a file of items or users, and how its other columns are read."""
    columns = {key: _columns_of(key, data)[key]}
    try:
        chunks = list(table_chunks(path, columns, chunk_rows=CHUNK_ROWS))
        if not chunks:
            return [_no_rows(path)]
        frame = pd.concat(chunks, ignore_index=True)
        frame[key] = whole_ids(path, key, frame[key])
        layout = format_of(data)
        if problems := _examine_ids(path, columns, frame, key):
            return problems
        return (layout.open_items if key == ITEM else layout.open_users)(path)[1]
    except UserError as error:
        return [_unreadable(path, error)]


def _examine_ids(
    path: Path, columns: dict[str, str], frame: pd.DataFrame, key: str
) -> list[Problem]:
    rules = (FIELDS_RULE, *table_rules(key, "this file"))
    expectations, listing = Expectations(), _Listing([path], columns)
    expectations.add("table", rules)
    listing.add(frame, expectations.check("table", frame), rules)
    return listing.problems()


def _examine_log(data: Data, cfg: Config) -> list[Problem]:
    """Every row of the events that `data` names, by the rules of the validate stage."""
    layout = format_of(data)
    items_file = data.path / layout.items if layout.items else None
    rules, counted = row_rules(cfg.validate_, items_file), Counter[str]()
    try:
        raw = read_raw(data, cfg.validate_.chunk_rows)
    except UserError as error:
        return [_unreadable(_file_of(error, data, layout), error)]
    path, columns = raw.files[0], column_names(data)
    files = [part.events for part in raw.parts]
    listing = _Listing(files, _columns_of(EVENTS, data) if data.format == "table" else columns)
    expectations = Expectations()
    expectations.add("events", rules)
    known = None if raw.items is None else pd.Index(raw.items[ITEM].dropna().unique())
    unknown: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hpgr-doctor-") as scratch:
        staged = Path(scratch) / "staged.parquet"
        try:
            stage(raw.events, staged)
            mended = mend_ids(staged, files)
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
                found = expectations.check("events", chunk)
                listing.add(chunk, found, rules)
                strangers = chunk[ITEM].iloc[found.get(UNKNOWN_ITEM, [])]
                unknown += strangers.iloc[: LINES_PER_KIND - len(unknown)].tolist()
                counted.update(shapes(chunk[TIMESTAMP]).value_counts().to_dict())
        notes = notes_on_rows(staged, files, columns, mended)
        if data.format != "table" or data.columns.action is not None:
            notes += notes_on_actions(staged, path, columns[ACTION], cfg.sessionize)
    if known is not None and items_file is not None:
        notes += notes_on_spelling(unknown, known, path, items_file)
    problems = [*_mixed(path, columns[TIMESTAMP], counted), *notes, *listing.problems()]
    for file_path, key, table in raw.tables:
        if data.format != "table" or file_path not in raw.parts[0].files:
            frame = table[[key]].assign(line=np.arange(1, len(table) + 1), ragged=None)
            problems += _examine_ids(file_path, {key: key}, frame, key)
    return problems


def _file_of(error: UserError, data: Data, layout: Format) -> Path:
    """The file that an error of reading a log speaks of."""
    files = [data.path / name for name in layout.names]
    return next((file for file in files if str(error).startswith(str(file))), files[0])


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
