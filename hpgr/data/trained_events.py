"""A sketch of a model's training events, stored with the model.

    artifacts/sessions/trained.npy      uint64, sorted: the training events of this log and those of
                                        the model below base/

An event is identified by a hash over its time and the external ids of user, item and action, so
that it is recognized in any later log, under other indices and whatever was cut or added. A sketch
keeps the KEPT smallest hashes (bottom-k; Cohen and Kaplan, PODC 2007). With up to KEPT events it is
the whole set; with more it is a uniform sample, complete for hashes up to its largest.

A warm start and the gate use it to check if a model has trained on events that the current log
holds out. That happens, for instance, if late events or other settings moved a border of the split
back, or if a batch was taken out again. Reads the folder of the sessionize stage and base/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hpgr.data.base_folder import RECORD, is_filled
from hpgr.data.log import TEST, TRAIN, VALIDATION
from hpgr.runtime import DamagedFile, UserError, read_json

SKETCH = "trained.npy"
KEPT = 1 << 20  # 8 MB
BATCH_ROWS = 1 << 18
NAMES = {"user": ("users", "user_id"), "item": ("items", "item_id"), "action": ("actions", "name")}


@dataclass(frozen=True)
class Overlap:
    """`trained` of `known` held-out events were trained on; the sketch covers `known` of them."""

    trained: int
    known: int


def remember(sessions: Path, base: Path) -> None:
    """Write `trained.npy` beside the tables of a sessionized log.

    Args:
        sessions: the folder of the tables, which need not be in place yet.
        base: the folder of the model that training starts from.

    Raises:
        UserError: that model has trained on events that this log holds out.
    """
    known = np.empty(0, np.uint64)
    if is_filled(base):
        known = read_sketch(base)
        found = overlap(known, sessions, VALIDATION, TEST)
        if found.trained:
            version = read_json(base / RECORD).get("version")
            raise UserError(
                f"{found.trained:,} of {found.known:,} events that the split holds out for "
                f"validation or test are ones that version {version}, below {base}/, has trained "
                "on: its figures would be too good. Other settings of sessionize, late events or a "
                "batch that was taken out moved the border back. Start from a version that is "
                "older (`hpgr base VERSION`) or from nothing (`hpgr base --clear`; the flow "
                "`train` does that)."
            )
    waiting: list[np.ndarray] = []  # merged now and then: a merge sorts the whole sketch
    for keys, split in _events(sessions):
        new = keys[split == TRAIN]
        waiting.append(new[new < known[-1]] if len(known) == KEPT else new)
        if sum(map(len, waiting)) >= KEPT:
            known, waiting = _merged(known, waiting), []
    known = _merged(known, waiting)
    np.save(sessions / SKETCH, known, allow_pickle=False)


def read_sketch(folder: Path) -> np.ndarray:
    """The sketch that lies in `folder`, uint64, ascending.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is cut off or something else.
    """
    path = folder / SKETCH
    try:
        # Mapped first: what the header claims is compared with the file before memory is taken.
        sketch = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError, TypeError, SyntaxError) as error:
        raise DamagedFile(path, error) from error
    if isinstance(sketch, np.lib.npyio.NpzFile):
        sketch.close()
        raise DamagedFile(path, "expected a row of uint64, found an archive")
    if sketch.dtype != np.uint64 or sketch.ndim != 1:
        raise DamagedFile(path, f"expected a row of uint64, found {sketch.dtype} {sketch.shape}")
    if len(sketch) > KEPT or not (sketch[1:] > sketch[:-1]).all():
        raise DamagedFile(path, f"expected at most {KEPT:,} values, each larger than the last")
    return np.array(sketch)


def overlap(sketch: np.ndarray, sessions: Path, *parts: int) -> Overlap:
    """Count the events of the split's `parts` that a model with this sketch has trained on."""
    trained = covered = 0
    for keys, split in _events(sessions):
        asked = keys[np.isin(split, parts)]
        if len(sketch) == KEPT:
            asked = asked[asked <= sketch[-1]]
        covered += len(asked)
        trained += int(np.isin(asked, sketch).sum())
    return Overlap(trained, covered)


def _merged(known: np.ndarray, more: Sequence[np.ndarray]) -> np.ndarray:
    """The smallest KEPT of all hashes, ascending."""
    found = np.sort(np.concatenate([known, *more]))
    return found[np.diff(found, prepend=~found[:1]) != 0][:KEPT]


def _events(sessions: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hash and split of every event, in batches."""
    hashes = {
        column: _hashes(sessions / f"{table}.parquet", column, name)
        for column, (table, name) in NAMES.items()
    }
    source = pq.ParquetFile(sessions / "events.parquet")
    for batch in source.iter_batches(BATCH_ROWS, columns=[*NAMES, "timestamp", "split"]):
        keys = batch["timestamp"].to_numpy().astype(np.uint64)
        for column in NAMES:
            keys = _mix(keys ^ hashes[column][batch[column].to_numpy()])
        yield keys, batch["split"].to_numpy()


def _hashes(table: Path, key: str, name: str) -> np.ndarray:
    """Hash of the external id of every index; 0 for an index without one."""
    rows = pq.read_table(table, columns=[key, name])
    ids = rows[key].to_numpy()
    found = np.zeros(int(ids.max(initial=0)) + 1, np.uint64)
    found[ids] = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        for text in rows[name].to_pylist()
    ]
    return found


def _mix(keys: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
