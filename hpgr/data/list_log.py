"""Shown lists as flat, memory-mapped arrays: what training reads of them.

Written by the sessionize stage below `artifacts/sessions/lists/`: the training and validation lists
of `hpgr.data.impressions` whose user the log has, sorted by user and time; test lists are in its
table alone. Notation: L lists, N shown items in all.

| array     | dtype | shape | meaning                                                        |
|-----------|-------|-------|----------------------------------------------------------------|
| offsets   | int64 | L + 1 | items of list l are rows offsets[l] .. offsets[l + 1]          |
| user      | int32 | L     | to whom it was shown                                           |
| end       | int64 | L     | first row of the log's arrays that the list may not see        |
| timestamp | int64 | L     | seconds since 1970, UTC, when it was shown                     |
| split     | int8  | L     | 0 train, 1 validation                                          |
| item      | int32 | N     | dense item id; 1 where no event before the list has the item   |
| label     | int8  | N     | 1 taken, 0 passed over                                         |
| place     | int32 | N     | number of items that were shown before it; -1: not known       |

`meta.json` beside them holds `can_rank`. Imports numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpgr.data.histories import runs
from hpgr.data.log import mapped
from hpgr.runtime import DamagedFile, read_json

LIST_DTYPES = {
    "offsets": np.int64,
    "user": np.int32,
    "end": np.int64,
    "timestamp": np.int64,
    "split": np.int8,
    "item": np.int32,
    "label": np.int8,
    "place": np.int32,
}
OF_ITEMS = ("item", "label", "place")
NO_PLACE = -1


@dataclass(frozen=True)
class ListLog:
    """The arrays above.

    `can_rank`: both labels are frequent enough in the training lists for a ranking head, and some
    validation list holds both.
    """

    can_rank: bool
    offsets: np.ndarray
    user: np.ndarray
    end: np.ndarray
    timestamp: np.ndarray
    split: np.ndarray
    item: np.ndarray
    label: np.ndarray
    place: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> ListLog:
        """Map the arrays below `folder` (`artifacts/sessions/lists`).

        Raises:
            FileNotFoundError: a file is missing; run the sessionize stage.
            DamagedFile: a file is cut off, or is not what the contract says.
        """
        arrays = mapped(folder, LIST_DTYPES)
        lists = len(arrays["offsets"]) - 1
        expected = {name: lists for name in ("user", "end", "timestamp", "split")}
        expected |= dict.fromkeys(OF_ITEMS, int(arrays["offsets"][-1]))
        for name, rows in expected.items():
            if len(arrays[name]) != rows:
                found = len(arrays[name])
                raise DamagedFile(folder / f"{name}.npy", f"expected {rows} rows, found {found}")
        return cls(can_rank=read_json(folder / "meta.json")["can_rank"], **arrays)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def size(self) -> np.ndarray:
        """Number of shown items of each list, int64 [L]."""
        return np.diff(self.offsets)

    def of(self, split: int) -> np.ndarray:
        """Numbers of the lists of `split`, int64."""
        return np.flatnonzero(np.asarray(self.split) == split)

    def items_of(self, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of `lists` [Q] among their shown items, int64 [Q + 1], and the rows of those."""
        start = self.offsets[lists]
        return runs(start, self.offsets[lists + 1] - start)


def places(offsets: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Count the items that were shown before each item of its list, int32 [N].

    Items at one position share a place: the order of their rows may be one by label. Whatever a
    log counts positions from, the first place is 0.

    Args:
        offsets: items of list l are rows offsets[l] .. offsets[l + 1], int64 [L + 1].
        position: as shown, ascending in each list, float64 [N], NaN where it is not known: the
            whole list then has NO_PLACE.
    """
    size = np.diff(offsets)
    row, start = np.arange(len(position)), np.repeat(offsets[:-1], size)
    new = (row == start) | (np.diff(position, prepend=np.nan) != 0)
    before = np.maximum.accumulate(np.where(new, row, 0)) - start
    unknown = np.append(0, np.cumsum(np.isnan(position)))[offsets]
    return np.where(np.repeat(np.diff(unknown) > 0, size), NO_PLACE, before).astype(np.int32)
