"""The sorted events of a log as `events.parquet` and as flat arrays, written in one pass.

Writes below the folder it is given: `events.parquet` and `arrays/{item, timestamp, action, label,
session, split}.npy` (docs/artifacts.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from hpgr.data.log import DTYPES
from hpgr.data.parquet import write_parquet

BATCH_ROWS = 1 << 18
NAMES = ("item", "timestamp", "action", "label", "session", "split")
FEW_VALUES = ["action", "label", "split"]  # a dictionary of the other columns saves nothing


def write_events(events: ds.Dataset, out: Path, *, num_users: int, num_events: int) -> np.ndarray:
    """Write a table that is sorted by user and position; the same rows give the same bytes.

    Returns:
        Number of events of each user, int64 [num_users].
    """
    folder = out / "arrays"
    folder.mkdir()
    columns = {name: _reserved(folder / f"{name}.npy", DTYPES[name], num_events) for name in NAMES}
    per_user = np.zeros(num_users, dtype=np.int64)

    def tables() -> Iterator[pa.Table]:
        row, last_user = 0, 0
        for batch in events.to_batches(batch_size=BATCH_ROWS):
            if not len(batch):
                continue
            yield pa.Table.from_batches([batch])
            user = batch["user"].to_numpy()
            assert (np.diff(user, prepend=last_user) >= 0).all(), "events are not sorted by user"
            last_user = user[-1]
            per_user[:] += np.bincount(user, minlength=num_users)
            for name, column in columns.items():
                column[row : row + len(batch)] = batch[name].to_numpy()
            row += len(batch)

    path = out / "events.parquet"
    write_parquet(tables(), path, events.schema, compression="zstd", use_dictionary=FEW_VALUES)
    for column in columns.values():
        column.flush()
    return per_user


def _reserved(path: Path, dtype: type, length: int) -> np.memmap:
    """A new array on disk, its space reserved, so that a full disk is an error here.

    Later a page without room would be a signal that kills the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))
    return array
