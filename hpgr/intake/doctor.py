"""`hpgr doctor PATH`: the problems of a log, line by line, before anything runs.

Reads one table of events, items, users or impressions, or a whole raw folder. Writes only a scratch
file. The rules are those of the validate stage, and in addition what makes the stage refuse a whole
file: header, encoding, and mixed formats of time.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hpgr.data import labels
from hpgr.data.repeats import removes_history
from hpgr.intake.contract import (
    ACTION,
    EVENTS,
    FIELDS_RULE,
    IMPRESSIONS,
    ITEM,
    SHOWN_COLUMNS,
    TIMESTAMP,
    UNKNOWN_ITEM,
    USER,
    row_rules,
    table_rules,
)
from hpgr.intake.expectations import Expectations
from hpgr.intake.file_problems import (
    LINES_PER_KIND,
    FileProblem,
    Listing,
    dialect_problems,
    mixed,
    no_rows,
    note,
    text_problems,
    unreadable,
)
from hpgr.intake.formats import column_names, format_of
from hpgr.intake.impression_rules import shown_rules
from hpgr.intake.impression_screening import SHOWN_IDS, check_shown
from hpgr.intake.log_notes import notes_on_actions, notes_on_rows, notes_on_spelling
from hpgr.intake.raw_file import (
    PARQUET,
    holds_parts,
    partition_of,
    parts_of,
    require_path,
    require_text,
)
from hpgr.intake.raw_log import numbered, read_raw, whole_ids
from hpgr.intake.screening import check_rows
from hpgr.intake.staging import mend_ids, query, stage
from hpgr.intake.table_files import header, repeated, suggestion, table_chunks
from hpgr.intake.time_units import shapes
from hpgr.runtime import UserError

if TYPE_CHECKING:
    from hpgr.config import Config, Data

CHUNK_ROWS = 1 << 18


def doctor(path: Path, cfg: Config, outlook: list[FileProblem] | None = None) -> list[FileProblem]:
    """The problems of `path` in order of files and lines, at most LINES_PER_KIND of each kind.

    Args:
        path: a raw folder in the format that `cfg.data` names, or one table with the columns of
            `cfg.data.columns`: a Parquet or CSV file or a folder of such parts. It holds items,
            users or impressions if it has the name that `cfg.data` gives to such a table, otherwise
            events.
        cfg: the format and the limits.
        outlook: receives notes on what training will make of a sound log.
    """
    examined = _examine(path, cfg, [] if outlook is None else outlook)
    return list(_readable([path], examined))


def _examine(path: Path, cfg: Config, outlook: list[FileProblem]) -> Iterator[FileProblem]:
    require_path(path, "correct the path")
    data = cfg.data.model_copy(update={"format": "table", "path": path})
    tables = {role: path / name for role, name in _named(data)}
    is_log = any(table.exists() for table in tables.values())
    named = any(path.name == Path(name).name for _, name in _named(data))
    if path.is_dir() and (is_log or not (holds_parts(path) or named)):
        if cfg.data.format != "table":
            yield from _examine_log(cfg.data.model_copy(update={"path": path}), cfg, outlook)
            return
        for role, table in tables.items():
            yield from _examine_table(table, role, data, cfg, outlook)
        return
    role, folder = _role(path, data)
    data = data.model_copy(update={"path": folder})
    if role == EVENTS:
        data = data.model_copy(update={"interactions": path.relative_to(folder).as_posix()})
    yield from _examine_table(path, role, data, cfg, outlook)


def _readable(files: Sequence[Path], problems: Iterable[FileProblem]) -> Iterator[FileProblem]:
    """The problems, and after them that of one of `files` which cannot be read further."""
    try:
        yield from problems
    except UserError as error:
        about = [file for file in files if str(error).startswith(str(file))]
        yield unreadable([*about, *files][0], error)


def _named(data: Data) -> list[tuple[str, str]]:
    """Role and name of each table that `data` names."""
    named = (
        (EVENTS, data.interactions),
        (ITEM, data.items),
        (USER, data.users),
        (IMPRESSIONS, data.impressions),
    )
    return [(role, name) for role, name in named if name is not None]


def _role(path: Path, data: Data) -> tuple[str, Path]:
    """The role that the name of the table at `path` implies, and the raw folder that it lies in."""
    for role, name in _named(data):
        if path.parts[-len(Path(name).parts) :] == Path(name).parts:
            return role, path.parents[len(Path(name).parts) - 1]
    for role, name in _named(data):
        if role != EVENTS and path.name == Path(name).name:
            return role, path.parent
    return EVENTS, path.parent


def _examine_table(
    path: Path, role: str, data: Data, cfg: Config, outlook: list[FileProblem]
) -> Iterator[FileProblem]:
    problems = list(_readable([path], _examine_shape(path, role, data)))
    yield from problems
    if any(p.serious for p in problems):
        return
    if role == IMPRESSIONS:
        yield from _readable([path], _examine_impressions(path, data, cfg))
        return
    if role != EVENTS:
        yield from _readable([path], _examine_rows(path, role, data))
        return
    # Users do not matter for events. Items do; problems of their file are reported for that file.
    data = data.model_copy(update={"users": None, "impressions": None})
    if data.items is not None:
        items = data.path / data.items
        if any(p.serious for p in _readable([items], _examine_items(items, data))):
            data = data.model_copy(update={"items": None})
    yield from _examine_log(data, cfg, outlook)


def _examine_items(path: Path, data: Data) -> Iterator[FileProblem]:
    """Problems that keep the items from being read."""
    yield from _examine_shape(path, ITEM, data)
    yield from format_of(data).open_table(ITEM, path)[1]


def _examine_shape(path: Path, role: str, data: Data) -> Iterator[FileProblem]:
    """Problems of files, encodings, headers and dialects, found before a row is read."""
    require_path(path, "correct the path")
    for part in parts_of(path):
        yield from _readable([part], _examine_part(part, path, role, data))


def _examine_part(part: Path, table: Path, role: str, data: Data) -> Iterator[FileProblem]:
    """Problems of one file of a table: of its text, else of its header, else of its dialect."""
    steps: list[Iterable[FileProblem]] = [_examine_header(part, table, role, data)]
    if part.suffix not in PARQUET:
        require_text(part)
        steps = [text_problems(part), *steps, dialect_problems(part, data.quoting)]
    for step in steps:
        problems = list(step)
        yield from problems
        if any(p.serious for p in problems):
            return


def _examine_header(path: Path, table: Path, role: str, data: Data) -> Iterator[FileProblem]:
    """Missing and repeated columns of one file of a table."""
    names = header(path)
    for name in repeated(names):
        places = [str(n + 1) for n, other in enumerate(names) if other == name]
        yield FileProblem(
            path,
            "repeated column",
            f"it in places {', '.join(places)}",
            "each name once",
            "rename or drop the copies",
            line=1,
            column=name,
        )
    names += [name for name in partition_of(path, table) if name not in names]
    for wanted, name in format_of(data).tables[role].columns.items():
        if name not in names:
            yield FileProblem(
                path,
                "missing column",
                f"the columns {', '.join(names)}",
                f"one named {name!r}",
                suggestion(wanted, name, names),
                line=1,
                column=name,
            )


def _examine_rows(path: Path, key: str, data: Data) -> Iterator[FileProblem]:
    """Problems of the ids of items or users, and notes on how the other columns are read."""
    layout = format_of(data)
    columns = {key: layout.tables[key].columns[key]}
    chunks = list(table_chunks(path, columns, CHUNK_ROWS, data.quoting))
    if not chunks:
        yield no_rows(path)
        return
    frame = pd.concat(chunks, ignore_index=True)
    frame[key] = whole_ids(path, key, frame[key])
    yield from _examine_ids(path, columns, frame, key) or layout.open_table(key, path)[1]


def _examine_impressions(path: Path, data: Data, cfg: Config) -> Iterator[FileProblem]:
    """Check every row of the impressions at `path` by the rules of the validate stage."""
    layout, positions = format_of(data), data.columns.position is not None
    rules = shown_rules(cfg.validate_, positions=positions)
    listing = Listing(parts_of(path), layout.tables[IMPRESSIONS].columns)
    with tempfile.TemporaryDirectory(prefix="hpgr-doctor-") as scratch:
        staged = Path(scratch) / "staged.parquet"
        chunks = layout.open_rows(IMPRESSIONS, path, cfg.validate_.chunk_rows)
        stage(numbered([(path, chunks)]), staged, SHOWN_COLUMNS)
        if not pq.read_metadata(staged).num_rows:
            yield no_rows(path)
            return
        mend_ids(staged, [path], SHOWN_IDS)
        checked = check_shown(staged, Expectations(), cfg.validate_, positions=positions)
        for chunk, found in checked:
            listing.add(chunk, found, rules)
    yield from listing.problems()


def _examine_ids(
    path: Path, columns: dict[str, str], frame: pd.DataFrame, key: str
) -> list[FileProblem]:
    rules = (FIELDS_RULE, *table_rules(key, "this file"))
    expectations, listing = Expectations(), Listing(parts_of(path), columns)
    expectations.add("table", rules)
    listing.add(frame, expectations.check("table", frame), rules)
    return listing.problems()


def _examine_log(data: Data, cfg: Config, outlook: list[FileProblem]) -> Iterator[FileProblem]:
    files = [data.path / table.name for table in format_of(data).tables.values()]
    yield from _readable(files, _examine_events(data, cfg, outlook))


def _examine_events(data: Data, cfg: Config, outlook: list[FileProblem]) -> Iterator[FileProblem]:
    """Check every row of the events that `data` names by the rules of the validate stage."""
    raw = read_raw(data, cfg.validate_.chunk_rows)
    columns, files = column_names(data), [part[EVENTS] for part in raw.parts]
    path, items_file = files[0], raw.parts[0].get(ITEM)
    rules, counted = row_rules(cfg.validate_, items_file), Counter[str]()
    listing, unknown = Listing(raw.sources, columns), list[str]()
    with tempfile.TemporaryDirectory(prefix="hpgr-doctor-") as scratch:
        staged = Path(scratch) / "staged.parquet"
        stage(raw.events, staged)
        mended = mend_ids(staged, files)
        chunks = check_rows(staged, rules, Expectations(), cfg.validate_.chunk_rows, raw.items)
        for chunk, found in chunks:
            listing.add(chunk, found, rules)
            strangers = chunk[ITEM].iloc[found.get(UNKNOWN_ITEM, [])]
            unknown += strangers.iloc[: LINES_PER_KIND - len(unknown)].tolist()
            counted.update(shapes(chunk[TIMESTAMP]).value_counts().to_dict())
        if not pq.read_metadata(staged).num_rows:
            yield no_rows(path)
            return
        notes = notes_on_rows(staged, files, columns, mended)
        if data.format != "table" or data.columns.action is not None:
            notes += notes_on_actions(staged, path, columns[ACTION], cfg.sessionize)
        outlook += _training_notes(staged, path, columns, cfg)
    if raw.items is not None and items_file is not None:
        notes += notes_on_spelling(unknown, raw.items[ITEM], path, items_file)
    yield from mixed(path, columns[TIMESTAMP], counted)
    yield from notes
    yield from listing.problems()
    for file_path, key, table in raw.tables:
        if data.format != "table" or file_path not in raw.parts[0].values():
            frame = table[[key]].assign(line=np.arange(1, len(table) + 1), ragged=None)
            yield from _examine_ids(file_path, {key: key}, frame, key)


def _training_notes(
    staged: Path, file: Path, columns: Mapping[str, str], cfg: Config
) -> Iterator[FileProblem]:
    """Consequences of a sound log for training: repeats kept, no ranking.

    The sessionize stage decides this from the training events; here it is estimated from all rows
    in `staged`. `columns` gives the name in `file` of each of our columns.
    """
    counts: dict[str | None, int] = dict(
        query(staged.parent, f"SELECT {ACTION}, count(*) FROM read_parquet(?) GROUP BY 1", staged)
    )
    distinct = f"SELECT DISTINCT {USER}, {ITEM} FROM read_parquet(?)"
    ((users, pairs),) = query(
        staged.parent, f"SELECT count(DISTINCT {USER}), count(*) FROM ({distinct})", staged
    )
    events = sum(counts.values())
    share = (events - pairs) / max(1, events - users)
    if share > cfg.evaluate.max_repeat_share:
        limit = f"{cfg.evaluate.max_repeat_share:.0%}"
        removed = removes_history(share, cfg.evaluate)
        now = "leave the answers" if removed else "stay in the answers"
        yield note(
            file,
            "repeats",
            columns[ITEM],
            f"{share:.1%} of the next events repeat an item that their user had before",
            f"up to {limit} (evaluate.max_repeat_share), or that repeats are meant",
            f"items that a user had before {now} (evaluate.remove_history: "
            f"{str(not removed).lower()} would change that)",
        )
    positives = labels.positives(counts, cfg.sessionize)
    if not labels.can_rank(positives, events, cfg.sessionize):
        found, fix = labels.finding(positives, events, counts, cfg.sessionize)
        expected = "enough events of both labels; the model retrieves and learns no ranking"
        if cfg.data.impressions is not None:
            expected += " from them, but may from shown lists (finetune.candidates)"
        yield note(file, "one label", columns[ACTION], found, expected, fix)
