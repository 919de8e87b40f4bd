"""Stage `sessionize`: from the validated log to sessions, vocabulary, splits and flat arrays.

Run: `hpgr sessionize`. Reads `artifacts/validated/{events,items}.parquet`, the section
`sessionize` of params.yaml, and base/ if training continues from a model: its ids of items,
actions and categories stay, new ones follow, and its training events must not be held out. Writes
`artifacts/sessions/` (docs/artifacts.md) as a whole or not at all. The query is
`hpgr.data.sessions`; the engine holds the log, Python reads record batches.
"""

from __future__ import annotations

import csv
import itertools
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.base_folder import is_filled
from hpgr.data.engine import BATCH_ROWS, Engine, open_engine, single_file, stored
from hpgr.data.labels import action_values, can_rank, finding, labels, unread
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
            item_ids, dropped, own_sessions = _tables(engine, settings, workspace, out)
        items, categories = _item_table(item_ids, workspace)
        pq.write_table(categories, out / "categories.parquet")
        log = _arrays(out, items, categories, settings, own_sessions=own_sessions)
        sums = totals(log)
        _check_split(sums, settings)
        log = _decided(log, sums, cfg)
        write_json(out / "arrays/meta.json", asdict(log.meta))
        items = items.append_column("train_events", pa.array(sums.items[TRAIN, FIRST_ITEM:]))
        pq.write_table(items.drop_columns("category_ids"), out / "items.parquet")
        remember(out, workspace.base)
        write_json(out / "stats.json", {**statistics(log, sums), "dropped": dropped})
        with (out / "gaps.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["gap_s", "gaps", "sessions"])
            writer.writerows(gap_table(sums, log.meta.num_users))
        _report(log, sums, out, cfg)


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


def _tables(
    engine: Engine, settings: Sessionize, workspace: Workspace, out: Path
) -> tuple[pa.Table, dict[str, int], bool]:
    """Write events, users and actions.

    Returns:
        `item`, `item_id`; what the k-core dropped; whether any event has a session id.
    """
    from hpgr.data import sessions

    source = workspace.validated / "events.parquet"
    events = engine.read(source)
    events = events.select(
        **{name: events[name].cast(kind) for name, kind in sessions.EVENTS_SCHEMA.items()}
    )
    before = events.agg(
        events=events.count(),
        users=events.user_id.nunique(),
        items=events.item_id.nunique(),
        named=events.session_id.count(),
    )
    before = before.to_pyarrow().to_pylist()[0]
    kept, num_events = _core(engine, events, before["events"], settings)
    if num_events == 0:
        raise UserError(
            f"no event is left of {before['events']} in {source}: too few "
            f"users have {settings.min_user_events} events with items that have "
            f"{settings.min_item_events}; lower sessionize.min_user_events or min_item_events"
        )
    paths = {
        key: engine.store(sessions.vocabulary(events, kept, key).order_by(name), key)
        for key, (name, _) in sessions.FIRST_ID.items()
    }
    single_file(paths["user_id"], out / "users.parquet")
    items = _items(paths["item_id"], engine, workspace)
    actions = _actions(paths["action"], settings, workspace, out)
    labelled = engine.scratch / "labels.parquet"
    pq.write_table(actions, labelled)
    log = sessions.sessionized(
        kept,
        engine.read(paths["user_id"]),
        engine.read(items),
        engine.read(labelled),
        gap_s=settings.gap_s,
        own_ids=before["named"] > 0,
        split=settings.split,
        cuts=_cuts(kept, num_events, settings),
    )
    single_file(engine.store(log, "log"), out / "events.parquet")
    dropped = {
        "events": before["events"] - num_events,
        "users": before["users"] - stored(paths["user_id"]).count_rows(),
        "items": before["items"] - stored(paths["item_id"]).count_rows(),
    }
    return stored(items).to_table(), dropped, before["named"] > 0


def _items(vocabulary: Path, engine: Engine, workspace: Workspace) -> Path:
    """Path of the table `item`, `item_id` in which the ids of base/, if filled, come first."""
    base = workspace.base
    if not is_filled(base):
        return vocabulary
    found = stored(vocabulary).to_table()["item_id"]
    names = grown("items", found, base)
    new = len(names) - pq.read_metadata(base / "items.parquet").num_rows
    if new == len(found):
        raise UserError(
            f"{base}/ holds the model of another log: none of its {len(names) - new} items has an "
            f"event in {workspace.validated / 'events.parquet'}; empty {base}/ to train from "
            "nothing"
        )
    ids = pa.array(range(FIRST_ITEM, FIRST_ITEM + len(names)), pa.int32())
    path = engine.scratch / "items.parquet"
    pq.write_table(pa.table({"item": ids, "item_id": names}), path)
    return path


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


def _actions(vocabulary: Path, settings: Sessionize, workspace: Workspace, out: Path) -> pa.Table:
    """Write actions.parquet; returns `action`, `action_id`, `label`, with a row for no action."""
    column = grown("actions", stored(vocabulary).to_table()["action"], workspace.base)
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
    return pa.table(
        {
            "action": pa.array([*names, None], pa.string()),
            "action_id": pa.array([*ids.to_pylist(), 0], pa.int16()),
            "label": pa.array(labels([*names, None], settings), pa.int8()),
        }
    )


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
    out: Path,
    items: pa.Table,
    categories: pa.Table,
    settings: Sessionize,
    *,
    own_sessions: bool,
) -> EventLog:
    """Write `arrays/` from the sorted events.parquet, batch by batch, and map them."""
    folder = out / "arrays"
    folder.mkdir()
    source = pq.ParquetFile(out / "events.parquet")
    meta = Meta(
        num_users=pq.read_metadata(out / "users.parquet").num_rows,
        num_items=len(items) + FIRST_ITEM,
        num_actions=pq.read_metadata(out / "actions.parquet").num_rows + 1,
        num_categories=len(categories) + 1,
        num_events=source.metadata.num_rows,
        split=settings.split,
        gap_s=settings.gap_s,
        own_sessions=own_sessions,
    )
    names = ["item", "timestamp", "action", "label", "session", "split"]
    columns = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=DTYPES[name], shape=(meta.num_events,)
        )
        for name in names
    }
    for name in names:
        _reserve(folder / f"{name}.npy")
    per_user = np.zeros(meta.num_users, dtype=np.int64)
    row, last_user = 0, 0
    for batch in source.iter_batches(BATCH_ROWS, columns=["user", *names]):
        user = batch["user"].to_numpy()
        assert (np.diff(user, prepend=last_user) >= 0).all(), "events.parquet is not sorted by user"
        last_user = user[-1]
        per_user += np.bincount(user, minlength=meta.num_users)
        for name, column in columns.items():
            column[row : row + len(batch)] = batch[name].to_numpy()
        row += len(batch)
    for column in columns.values():
        column.flush()
    actions = pq.read_table(out / "actions.parquet")["name"].to_pylist()
    category = items["category_ids"].combine_chunks()
    per_item = np.concatenate([np.zeros(FIRST_ITEM, np.int64), category.value_lengths().to_numpy()])
    small = {
        "user_offsets": np.concatenate([[0], np.cumsum(per_user)]),
        "category_offsets": np.concatenate([[0], np.cumsum(per_item)]),
        "category": category.flatten().to_numpy(),
        "action_value": np.array([np.nan, *action_values(actions, settings)]),
    }
    for name, values in small.items():
        np.save(folder / f"{name}.npy", values.astype(DTYPES[name]), allow_pickle=False)
    write_json(folder / "meta.json", asdict(meta))
    return EventLog.open(folder)


def _reserve(path: Path) -> None:
    """Reserve the disk space of a new memory map, so that a full disk is an error here.

    Later a page without room would be a signal that kills the process.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))


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
    if not meta.can_rank:
        counts = zip([None, *names], sums.actions[TRAIN].tolist(), strict=True)
        seen = {name: n for name, n in counts if n}
        found, advice = finding(
            int(sums.positives[TRAIN]), int(sums.events[TRAIN]), seen, cfg.sessionize
        )
        print(
            f"labels: of the training events, {found}: the model retrieves and learns no ranking "
            f"(no finetune.monitor: validation_auc, no gate.metric: auc); {advice}"
        )
