"""Stage `sessionize`: from the validated log to sessions, vocabulary, splits and flat arrays.

Run: `hpgr sessionize`. Reads `artifacts/validated/{events,items,impressions}.parquet`, the section
`sessionize` of params.yaml, and base/ if training continues from a model: its ids of items,
actions and categories stay, new ones follow, and its training events must not be held out. Writes
`artifacts/sessions/` (docs/artifacts.md) as a whole or not at all. The query is
`hpgr.data.sessions`; the engine holds the log, Python reads record batches.
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.base_folder import is_filled
from hpgr.data.engine import Engine, open_engine, stored
from hpgr.data.flat_arrays import write_events
from hpgr.data.impressions import LISTS, TABLE, in_words, no_impressions, write_impressions
from hpgr.data.labels import action_values, can_rank, finding, labels, unread
from hpgr.data.list_log import ListLog
from hpgr.data.log import DTYPES, FIRST_ITEM, TRAIN, EventLog, Meta
from hpgr.data.repeats import removes_history, repeat_share, rule
from hpgr.data.session_statistics import Totals, gap_table, statistics, totals
from hpgr.data.trained_events import remember
from hpgr.data.vocabulary import grown
from hpgr.runtime import UserError, atomic_folder, write_json
from hpgr.workspace import HERE, Workspace

if TYPE_CHECKING:
    from ibis.expr.types import Table

    from hpgr.config import Config, Sessionize
    from hpgr.data.sessions import TimeCuts

MAX_ACTIONS = 250  # each is a row of an embedding table: an action is a kind, not a measurement
ITEMS_SCHEMA = pa.schema(
    {"item_id": pa.string(), "title": pa.string(), "categories": pa.list_(pa.string())}
)


class EngineResult(NamedTuple):
    """Results of the engine: `item` and `item_id`, and numbers of rows.

    `dropped` counts what the k-core dropped, `own_sessions` is True if some event has a session id,
    `per_user` [U] are the events of each user, `cuts` the borders of the global-time split.
    """

    items: pa.Table
    dropped: dict[str, int]
    own_sessions: bool
    per_user: np.ndarray
    cuts: TimeCuts | None


def sessionize(cfg: Config, workspace: Workspace = HERE) -> None:
    """Cut sessions, number users and items, split, and write `artifacts/sessions/`.

    Args:
        cfg: section `sessionize`, and of `evaluate` the rule for repeats.
        workspace: where the run's files lie.

    Raises:
        UserError: the validated log is missing or lacks a column; the filters leave no event; a
            part of the split is empty, or the model below base/ has trained on it; actions are
            measurements rather than kinds; Spark is configured and cannot start.
    """
    settings = cfg.sessionize
    _check_inputs(workspace.validated)
    with atomic_folder(workspace.sessions) as out:
        with open_engine(settings.engine, out.parent) as engine:
            tables = _tables(engine, settings, workspace, out)
        items, categories = _item_table(tables.items, workspace)
        pq.write_table(categories, out / "categories.parquet")
        log = _arrays(out, tables, items, categories, settings)
        sums = totals(log)
        _check_split(sums, settings)
        log = _decided(log, sums, cfg)
        write_json(out / "arrays/meta.json", asdict(log.meta))
        items = items.append_column("train_events", pa.array(sums.items[TRAIN, FIRST_ITEM:]))
        pq.write_table(items.drop_columns("category_ids"), out / "items.parquet")
        shown = _impressions(out, workspace, log, tables.cuts, settings)
        remember(out, workspace.base)
        figures = {**statistics(log, sums), "dropped": tables.dropped}
        write_json(out / "stats.json", {**figures, "impressions": shown} if shown else figures)
        with (out / "gaps.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["gap_s", "gaps", "sessions"])
            writer.writerows(gap_table(sums, log.meta.num_users))
        _report(log, sums, out, cfg)
        if shown:
            print(f"impressions: {in_words(shown)}")


def _check_inputs(validated: Path) -> None:
    from hpgr.data.sessions import EVENTS_SCHEMA

    for name, columns in (("events", [*EVENTS_SCHEMA]), ("items", ITEMS_SCHEMA.names)):
        path = validated / f"{name}.parquet"
        if not path.is_file():
            raise UserError(f"{path} not found: run `hpgr validate` first")
        found = pq.read_schema(path).names
        if absent := [column for column in columns if column not in found]:
            raise UserError(
                f"{path}: no column {', '.join(absent)} (found {', '.join(found)}): "
                "run `hpgr validate` again"
            )


def _tables(engine: Engine, settings: Sessionize, workspace: Workspace, out: Path) -> EngineResult:
    """Write events, users and actions."""
    from hpgr.data import sessions

    source = workspace.validated / "events.parquet"
    events = engine.read(source)
    events = events.select(
        **{name: events[name].cast(kind) for name, kind in sessions.EVENTS_SCHEMA.items()}
    )
    before = events.agg(events=events.count(), named=events.session_id.count())
    before = before.to_pyarrow().to_pylist()[0]
    whole = {
        key: engine.store(sessions.vocabulary(events, key), f"whole-{key}")
        for key in sessions.FIRST_ID
    }
    known = {key: engine.read(path) for key, path in whole.items()}
    coded = engine.store(sessions.coded(events, *known.values()), "coded")
    kept, num_events = _core(engine, engine.read(coded), before["events"], settings)
    if num_events == 0:
        raise UserError(
            f"no event is left of {before['events']} in {source}: too few "
            f"users have {settings.min_user_events} events with items that have "
            f"{settings.min_item_events}; lower sessionize.min_user_events or min_item_events"
        )
    paths = {}
    for key, (name, _) in sessions.FIRST_ID.items():
        survived = sessions.core_vocabulary(known[key], kept, key)
        paths[key] = engine.store(survived.order_by(name), key)
    users = stored(paths["user_id"]).to_table()
    pq.write_table(users.select(["user", "user_id"]), out / "users.parquet", compression="zstd")
    items = _items(stored(paths["item_id"]).to_table(), workspace)
    actions = _actions(stored(paths["action"]).to_table(), settings, workspace, out)
    cuts = _cuts(kept, num_events, settings)
    log = sessions.sessionized(
        kept,
        _by_code(engine, users, "user_id"),
        _by_code(engine, items, "item_id"),
        _by_code(engine, actions, "action"),
        gap_s=settings.gap_s,
        own_ids=before["named"] > 0,
        split=settings.split,
        cuts=cuts,
    )
    rows = stored(engine.store(log, "log"))
    per_user = write_events(rows, out, num_users=len(users), num_events=num_events)
    dropped = {
        "events": before["events"] - num_events,
        "users": stored(whole["user_id"]).count_rows() - len(users),
        "items": stored(whole["item_id"]).count_rows() - items["code"].drop_null().length(),
    }
    return EngineResult(items, dropped, before["named"] > 0, per_user, cuts)


def _by_code(engine: Engine, vocabulary: pa.Table, key: str) -> Table:
    """A vocabulary under the codes of the coded log instead of its names."""
    path = engine.scratch / f"{key}-by-code.parquet"
    numbers = [n for n in vocabulary.column_names if n not in (key, "code")]
    pq.write_table(vocabulary.select([*numbers, "code"]).rename_columns([*numbers, key]), path)
    return engine.read(path)


def _items(vocabulary: pa.Table, workspace: Workspace) -> pa.Table:
    """The log's `vocabulary` of items, behind the items of base/ if it is filled.

    Those of base/ without an event have no `code`.
    """
    base = workspace.base
    if not is_filled(base):
        return vocabulary
    found = vocabulary["item_id"]
    names = grown("items", found, base)
    new = len(names) - pq.read_metadata(base / "items.parquet").num_rows
    if new == len(found):
        raise UserError(
            f"{base}/ holds the model of another log: none of its {len(names) - new} items has an "
            f"event in {workspace.validated / 'events.parquet'}; empty {base}/ to train from "
            "nothing"
        )
    ids = pa.array(range(FIRST_ITEM, FIRST_ITEM + len(names)), pa.int32())
    return pa.table({"item": ids, "item_id": names, "code": _codes(names, vocabulary, "item_id")})


def _codes(names: pa.ChunkedArray, vocabulary: pa.Table, key: str) -> pa.ChunkedArray:
    """The codes of `names`; none where the vocabulary lacks one."""
    return vocabulary["code"].take(pc.index_in(names, value_set=vocabulary[key]))


def _core(
    engine: Engine, events: Table, num_events: int, settings: Sessionize
) -> tuple[Table, int]:
    """The k-core and its number of events, by rounds that are stored until no row drops."""
    from hpgr.data.sessions import core_round

    least = settings.min_user_events, settings.min_item_events
    if max(least) == 1:
        return events, num_events
    # Every round but the last drops a row, so the loop ends.
    for number in itertools.count():
        path = engine.store(core_round(events, *least), f"core-{number}")
        events, before, num_events = engine.read(path), num_events, stored(path).count_rows()
        # A single filter is done after one round: dropping users changes no other user's count.
        if num_events == before or min(least) == 1:
            break
    return events, num_events


def _cuts(kept: Table, num_events: int, settings: Sessionize) -> TimeCuts | None:
    """Borders of the global-time split; None for leave-one-out.

    The last `test_share` of the events in time order is test, the `validation_share` before it
    validation. Events at the time of the last one before a border stay on its early side, so that
    no second is on both sides.
    """
    from hpgr.data.sessions import TimeCuts, time_cuts

    if settings.split != "global-time":
        return None
    train_and_validation = num_events - round(num_events * settings.test_share)
    train = train_and_validation - round(num_events * settings.validation_share)
    row = time_cuts(kept, train, train_and_validation).to_pyarrow().to_pylist()[0]
    return TimeCuts(**row)


def _actions(
    vocabulary: pa.Table, settings: Sessionize, workspace: Workspace, out: Path
) -> pa.Table:
    """Write actions.parquet; returns `code`, `action_id`, `label`, with a row for no action."""
    column = grown("actions", vocabulary["action"], workspace.base)
    names = column.to_pylist()
    if len(names) > MAX_ACTIONS:
        raise UserError(
            f"{workspace.validated / 'events.parquet'}: {len(names)} distinct actions "
            f"({', '.join(names[:5])}, ...), expected at most {MAX_ACTIONS} kinds: bin a "
            "continuous measure into a few steps before it enters the log, or set "
            "data.columns.action to null"
        )
    ids = pa.array(range(1, len(names) + 1), pa.int16())
    pq.write_table(pa.table({"action": ids, "name": column}), out / "actions.parquet")
    *known, without = labels([*names, None], settings)
    coded = pa.table(
        {
            "code": _codes(column, vocabulary, "action"),
            "action_id": ids,
            "label": pa.array(known, pa.int8()),
        }
    ).drop_null()
    none = {"code": [None], "action_id": [0], "label": [without]}
    return pa.concat_tables([coded, pa.table(none, coded.schema)])


def _item_table(item_ids: pa.Table, workspace: Workspace) -> tuple[pa.Table, pa.Table]:
    """Items and categories: title falls back to the id, categories are numbered as they appear.

    Returns `item`, `item_id`, `title`, `categories`, `category_ids` in the order of items, and
    `category`, `name`. A category counts once for an item; empty ones do not count.
    """
    source = pq.read_table(workspace.validated / "items.parquet", columns=ITEMS_SCHEMA.names)
    source = source.select(ITEMS_SCHEMA.names).cast(ITEMS_SCHEMA)
    row = pc.index_in(item_ids["item_id"], value_set=source["item_id"])
    found = source.take(row.combine_chunks())
    title = pc.coalesce(found["title"], item_ids["item_id"])
    listed = found["categories"].combine_chunks()
    pairs = pa.table(
        {"owner": pc.list_parent_indices(listed), "name": pc.list_flatten(listed)}
    ).filter((pc.field("name") != "") & pc.field("name").is_valid())
    # Grouping keeps no order, with one thread either.
    pairs = pairs.append_column("place", pa.array(range(len(pairs)), pa.int64()))
    pairs = pairs.group_by(["owner", "name"]).aggregate([("place", "min")]).sort_by("place_min")
    names = grown("categories", pa.chunked_array([pc.unique(pairs["name"])]), workspace.base)
    ids = pc.add(pc.index_in(pairs["name"], value_set=names), 1).cast(pa.int32())
    lengths = np.bincount(pairs["owner"].to_numpy(), minlength=len(item_ids))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    items = item_ids.select(["item", "item_id"]).append_column("title", title)
    for name, values in (("categories", pairs["name"]), ("category_ids", ids)):
        lists = pa.ListArray.from_arrays(offsets, values.combine_chunks())
        items = items.append_column(name, lists)
    categories = pa.table(
        {"category": pa.array(range(1, len(names) + 1), pa.int32()), "name": names}
    )
    return items, categories


def _arrays(
    out: Path, tables: EngineResult, items: pa.Table, categories: pa.Table, settings: Sessionize
) -> EventLog:
    """Write what `arrays/` lacks beside the events, and map all of it."""
    folder = out / "arrays"
    meta = Meta(
        num_users=len(tables.per_user),
        num_items=len(items) + FIRST_ITEM,
        num_actions=pq.read_metadata(out / "actions.parquet").num_rows + 1,
        num_categories=len(categories) + 1,
        num_events=int(tables.per_user.sum()),
        split=settings.split,
        gap_s=settings.gap_s,
        own_sessions=tables.own_sessions,
    )
    actions = pq.read_table(out / "actions.parquet")["name"].to_pylist()
    category = items["category_ids"].combine_chunks()
    per_item = np.concatenate([np.zeros(FIRST_ITEM, np.int64), category.value_lengths().to_numpy()])
    small = {
        "user_offsets": np.concatenate([[0], np.cumsum(tables.per_user)]),
        "category_offsets": np.concatenate([[0], np.cumsum(per_item)]),
        "category": category.flatten().to_numpy(),
        "action_value": np.array([np.nan, *action_values(actions, settings)]),
    }
    for name, values in small.items():
        np.save(folder / f"{name}.npy", values.astype(DTYPES[name]), allow_pickle=False)
    write_json(folder / "meta.json", asdict(meta))
    return EventLog.open(folder)


def _check_split(sums: Totals, settings: Sessionize) -> None:
    """Refuse a split with an empty part."""
    for name, count in zip(("train", "validation", "test"), sums.events, strict=True):
        if count == 0:
            raise UserError(
                f"the {settings.split} split leaves no {name} event among {sums.events.sum()}: "
                "raise sessionize.min_user_events to 3 or more for leave-one-out, raise the shares "
                "for global-time, or bring a longer log"
            )


def _decided(log: EventLog, sums: Totals, cfg: Config) -> EventLog:
    """The log with the decisions from its training part for all later stages; see `Meta`."""
    events, positives = int(sums.events[TRAIN]), int(sums.positives[TRAIN])
    share = repeat_share(log)
    meta = replace(
        log.meta,
        can_rank=can_rank(positives, events, cfg.sessionize),
        repeat_share=round(share, 6),
        remove_history=removes_history(share, cfg.evaluate),
    )
    return replace(log, meta=meta)


def _impressions(
    out: Path, workspace: Workspace, log: EventLog, cuts: TimeCuts | None, settings: Sessionize
) -> dict[str, int]:
    """Write the shown lists; returns their counts, or none where there are no impressions.

    DuckDB maps the ids, whatever engine reads the events: the vocabularies lie on this machine.
    """
    from hpgr.data.sessions import shown

    path = workspace.validated / TABLE
    if not path.is_file() or not pq.read_metadata(path).num_rows:
        no_impressions(out, settings)
        return {}
    with open_engine("duckdb", out.parent) as engine:
        users, items = (engine.read(out / f"{name}.parquet") for name in ("users", "items"))
        rows = shown(engine.read(path), users, items.select("item", "item_id"))
        mapped = stored(engine.store(rows, "impressions"))
        return write_impressions(mapped, out, log, settings, cuts)


def _report(log: EventLog, sums: Totals, out: Path, cfg: Config) -> None:
    """Print the decisions that differ from those for most logs."""
    meta, evaluation = log.meta, cfg.evaluate
    names = pq.read_table(out / "actions.parquet")["name"].to_pylist()
    actions = dict(zip(names, sums.actions.sum(axis=0)[1:].tolist(), strict=True))
    if meta.can_rank and (words := unread(actions, cfg.sessionize)):  # else see below
        print("actions that are no numbers: {}, expected {}; {}".format(*words))
    if meta.repeat_share > evaluation.max_repeat_share or evaluation.remove_history != "auto":
        print(f"repeats: {rule(meta, evaluation)}")
    if sums.resumed:
        print(
            f"sessions: kept by the log's own ids; one went on after another of its user "
            f"{sums.resumed:,} times"
        )
    if not meta.can_rank and not ListLog.open(out / LISTS).can_rank:
        counts = zip([None, *names], sums.actions[TRAIN].tolist(), strict=True)
        seen = {name: n for name, n in counts if n}
        found, advice = finding(
            int(sums.positives[TRAIN]), int(sums.events[TRAIN]), seen, cfg.sessionize
        )
        print(
            f"labels: of the training events, {found}: the model retrieves and learns no ranking "
            f"(no finetune.monitor: validation_auc, no gate.metric: auc); {advice}"
        )
