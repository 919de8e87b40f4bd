"""Shown lists in the numbers of the sessionized log: `artifacts/sessions/impressions.parquet`.

One row a shown item, sorted by user, time and list, in a list by position; no row where the log has
no impressions (`data.impressions`).

| column | type | meaning |
|---|---|---|
| impression | int64 | number of the list, from 0 in the order of the rows |
| impression_id, item_id | string | as the source has them |
| user | int32 | -1: the log has no event of this user |
| item | int32 | 1 (unknown) where no earlier event has it, see below |
| timestamp | int64 | seconds since 1970, UTC, when the list was shown |
| position | int64 | as shown, null where the source has none |
| label | int8 | 1 taken, 0 passed over |
| split | int8 | of the log's borders in time, -1 under leave-one-out, which has none |
| end | int64 | first row of the log's arrays that the list may not see |

Two rules keep the answer out of the question. A list sees the events of its user strictly before
its own second: the log may hold the click in the same second. And an item is known to a list only
by events, of any user, before that second: the vocabulary holds every item of the log, so that
merely to be in it may tell that the item is clicked later. What training reads of the lists is
written beside the table, see `hpgr.data.list_log`. Imports no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from hpgr.data.batches import events_before
from hpgr.data.histories import Histories
from hpgr.data.labels import can_rank
from hpgr.data.list_log import LIST_DTYPES, OF_ITEMS, ListLog, places
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, UNKNOWN, VALIDATION, EventLog
from hpgr.data.parquet import write_parquet
from hpgr.runtime import write_json

if TYPE_CHECKING:
    from hpgr.config import Sessionize
    from hpgr.data.sessions import TimeCuts

TABLE, LISTS = "impressions.parquet", "lists"
NO_USER, NO_SPLIT = -1, -1
NEVER = np.iinfo(np.int64).max
SCHEMA = pa.schema(
    {
        **{"impression": pa.int64(), "impression_id": pa.string(), "item_id": pa.string()},
        **{"user": pa.int32(), "item": pa.int32(), "timestamp": pa.int64()},
        **{"position": pa.int64(), "label": pa.int8(), "split": pa.int8(), "end": pa.int64()},
    }
)
BATCH_ROWS = 1 << 18


def write_impressions(
    shown: ds.Dataset, folder: Path, log: EventLog, settings: Sessionize, cuts: TimeCuts | None
) -> dict[str, int]:
    """Write the table, and below `lists/` the arrays of `hpgr.data.list_log`.

    Args:
        shown: as `hpgr.data.sessions.shown` gives it.
        folder: where both go.
        log: the sessionized log.
        settings: the events that make an item known, and the labels that make a ranking.
        cuts: borders of the global-time split; None under leave-one-out.

    Returns:
        Numbers of lists, of lists by part of the split, of lists whose user the log does not have,
        and of shown items and unknown ones among them.
    """
    # The whole log as the histories of its users; the arrays stay mapped.
    past = Histories.gather(log, log.user_offsets, slice(None), np.zeros(log.meta.num_users))
    known_from = times_of_nth(log, settings.min_item_events)
    names = ("train", "validation", "test")
    kept = _Kept()
    counts = dict.fromkeys(("lists", *names, "without_user", "items", "unknown_items"), 0)

    def tables() -> Iterator[pa.Table]:
        last = None  # id of the newest list
        for batch in shown.to_batches(batch_size=BATCH_ROWS):
            if not len(batch):
                continue
            ids = batch["impression_id"].to_numpy(zero_copy_only=False)
            opens = ids != np.append(np.array([last], dtype=object), ids[:-1])
            number = counts["lists"] + np.cumsum(opens) - 1
            last = ids[-1]
            user, time = batch["user"].to_numpy(), batch["timestamp"].to_numpy()
            end = np.zeros(len(batch), dtype=np.int64)
            there = user != NO_USER
            end[there] = log.user_offsets[user[there]]
            end[there] += events_before(past, user[there], time[there])
            item = batch["item"].to_numpy()
            item = np.where(known_from[item] < time, item, UNKNOWN)
            split = split_of(time, cuts)
            counts["lists"] += int(opens.sum())
            counts["items"] += len(item)
            counts["unknown_items"] += int((item == UNKNOWN).sum())
            counts["without_user"] += int((opens & ~there).sum())
            for part, name in zip((TRAIN, VALIDATION, TEST), names, strict=True):
                counts[name] += int((opens & there & (split == part)).sum())
            columns = {name: batch[name] for name in batch.schema.names} | {
                "impression": number, "item": item, "split": split, "end": end,
            }  # fmt: skip
            kept.add(opens, there & ((split == TRAIN) | (split == VALIDATION)), columns)
            yield pa.table({name: pa.array(columns[name], kind) for name, kind in _TYPES.items()})

    write_parquet(tables(), folder / TABLE, SCHEMA, compression="zstd")
    kept.write(folder / LISTS, settings)
    return counts


class _Kept:
    """Lists of which training reads, in memory until all are known: 14 bytes a shown item."""

    def __init__(self) -> None:
        self.num_items = 0
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in LIST_DTYPES}
        self.position: list[np.ndarray] = []  # as the source counts it; a batch may cut a list

    def add(self, opens: np.ndarray, kept: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Add the rows of a batch that are `kept`, bool [R]; `opens` [R] says which begin a list.

        Rows of one list are kept all or none.
        """
        first = opens & kept
        self.parts["offsets"].append(self.num_items + (np.cumsum(kept) - kept)[first])
        self.num_items += int(kept.sum())
        for name, dtype in LIST_DTYPES.items():
            if name not in ("offsets", "place"):
                rows = kept if name in OF_ITEMS else first
                self.parts[name].append(np.asarray(columns[name])[rows].astype(dtype))
        position = columns["position"].to_numpy(zero_copy_only=False)[kept]
        self.position.append(position.astype(np.float64))

    def write(self, folder: Path, settings: Sessionize) -> None:
        """Write the arrays and the decision whether a ranking can be learned from them."""
        self.parts["offsets"].append(np.array([self.num_items]))
        folder.mkdir()
        position = np.concatenate([np.zeros(0), *self.position])
        self.parts["place"].append(places(np.concatenate(self.parts["offsets"]), position))
        arrays = {}
        for name, dtype in LIST_DTYPES.items():
            arrays[name] = np.concatenate([np.zeros(0, dtype), *self.parts[name]]).astype(dtype)
            np.save(folder / f"{name}.npy", arrays[name], allow_pickle=False)
        enough = _can_rank(ListLog(can_rank=False, **arrays), settings)
        write_json(folder / "meta.json", {"can_rank": enough})


def _can_rank(lists: ListLog, settings: Sessionize) -> bool:
    """Return True if training lists have enough of both labels, and a validation list has both."""
    rows = lists.items_of(lists.of(TRAIN))[1]
    if not can_rank(int(lists.label[rows].sum()), len(rows), settings):
        return False
    offsets, rows = lists.items_of(lists.of(VALIDATION))
    taken = np.append(0, np.cumsum(lists.label[rows]))
    positives, size = np.diff(taken[offsets]), np.diff(offsets)
    return bool(((positives > 0) & (positives < size)).any())


_TYPES = {field.name: field.type for field in SCHEMA}


def times_of_nth(log: EventLog, nth: int) -> np.ndarray:
    """Time of the `nth` event of every item, from 1, int64 [V]; never for those with fewer."""
    item, time = np.asarray(log.item), np.asarray(log.timestamp)
    order = np.lexsort((time, item))
    count = np.bincount(item, minlength=log.meta.num_items)
    place = np.cumsum(count) - count + nth - 1
    found = np.full(log.meta.num_items, NEVER)
    enough = count >= nth
    found[enough] = time[order[place[enough]]]
    found[:FIRST_ITEM] = NEVER
    return found


def no_impressions(folder: Path, settings: Sessionize) -> None:
    """Write table and arrays without rows: a stage can only depend on what is there."""
    pq.write_table(SCHEMA.empty_table(), folder / TABLE)
    _Kept().write(folder / LISTS, settings)


def in_words(counts: Mapping[str, int]) -> str:
    """The counts of `write_impressions` as one sentence."""
    lists, items = counts["lists"], counts["items"]
    parts = [f"{counts[name]:,} {name}" for name in ("train", "validation", "test") if counts[name]]
    if not parts:
        parts = ["left out of the judgement, as only sessionize.split: global-time has a part"]
    if counts["without_user"]:
        parts.append(f"{counts['without_user']:,} left out, as the log has no event of their user")
    share = counts["unknown_items"] / items
    return (
        f"{lists:,} lists ({', '.join(parts)}); {counts['unknown_items']:,} of {items:,} shown "
        f"items ({share:.1%}) are unknown, as no earlier event has them"
    )


def split_of(time: np.ndarray, cuts: TimeCuts | None) -> np.ndarray:
    """Part of the split that each `time` [N] lies in, int8 [N]; NO_SPLIT without `cuts`."""
    if cuts is None:
        return np.full(len(time), NO_SPLIT, dtype=np.int8)
    part = np.where(time > cuts.train_until, VALIDATION, TRAIN)
    return np.where(time > cuts.validation_until, TEST, part).astype(np.int8)


def read_impressions(folder: Path) -> pa.Table:
    """The table in `folder`; without rows where the log was sessionized without impressions."""
    path = folder / TABLE
    return pq.read_table(path) if path.is_file() else SCHEMA.empty_table()
