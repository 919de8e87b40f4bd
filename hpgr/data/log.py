"""The sessionized log as flat, memory-mapped arrays: what training and evaluation read.

Written by the sessionize stage below `artifacts/sessions/arrays/`, one `.npy` file an array, rows
sorted by user and, within a user, by (timestamp, source row). Notation: E events, U users,
V rows of the item table, C category values, A action ids.

| array            | dtype | shape | meaning                                                |
|------------------|-------|-------|--------------------------------------------------------|
| user_offsets     | int64 | U + 1 | events of user u are rows user_offsets[u] .. [u + 1]   |
| item             | int32 | E     | dense item id; 0 is padding, 1 is an unknown item      |
| timestamp        | int64 | E     | seconds since 1970, UTC                                |
| action           | int16 | E     | dense action id; 0 is none or unknown                  |
| label            | int8  | E     | 1 positive, 0 negative                                 |
| session          | int32 | E     | session number within the user, from 0 by first event  |
| split            | int8  | E     | 0 train, 1 validation, 2 test                          |
| category_offsets | int64 | V + 1 | category values of item v: category[offsets[v]:[v+1]]  |
| category         | int32 | C     | dense category id, from 1; 0 is padding                |
| action_value     | float32 | A   | value of each action id; NaN for none                  |

Sessions of one user may interleave (two tabs, phone and television); rows stay in order of time.
`meta.json` beside the arrays holds the counts and the vocabularies' sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpgr.runtime import DamagedFile, read_json

PADDING, UNKNOWN, FIRST_ITEM = 0, 1, 2
TRAIN, VALIDATION, TEST = 0, 1, 2
DTYPES = {
    "user_offsets": np.int64,
    "item": np.int32,
    "timestamp": np.int64,
    "action": np.int16,
    "label": np.int8,
    "session": np.int32,
    "split": np.int8,
    "category_offsets": np.int64,
    "category": np.int32,
    "action_value": np.float32,
}


def mapped(folder: Path, dtypes: Mapping[str, type]) -> dict[str, np.ndarray]:
    """Map the arrays of `dtypes` below `folder`, one `.npy` file each, read-only.

    Raises:
        FileNotFoundError: one is missing; run the sessionize stage.
        DamagedFile: a file is cut off, or has another type.
    """
    arrays = {}
    for name, dtype in dtypes.items():
        path = folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DamagedFile(path, error) from error
        if array.dtype != dtype:
            raise DamagedFile(path, f"expected {np.dtype(dtype)}, found {array.dtype}")
        arrays[name] = array
    return arrays


@dataclass(frozen=True)
class Meta:
    """Counts and settings of one sessionized log; `num_*` include the reserved ids.

    `own_sessions`: events brought session ids, which took the place of the pause `gap_s`.
    `can_rank`: both labels are frequent enough in training for a ranking head. `repeat_share`:
    of the events before test, first ones left out, those whose item the user had met before.
    `remove_history`: items that a user had before leave the answers, wherever models are judged or
    served.
    """

    num_users: int
    num_items: int
    num_actions: int
    num_categories: int
    num_events: int
    split: str
    gap_s: int
    own_sessions: bool = False
    can_rank: bool = True
    repeat_share: float = 0.0
    remove_history: bool = True


@dataclass(frozen=True)
class EventLog:
    """The arrays above, memory-mapped read-only."""

    meta: Meta
    user_offsets: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    action: np.ndarray
    label: np.ndarray
    session: np.ndarray
    split: np.ndarray
    category_offsets: np.ndarray
    category: np.ndarray
    action_value: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> EventLog:
        """Map the arrays below `folder` (`artifacts/sessions/arrays`).

        Raises:
            FileNotFoundError: an array is missing; run the sessionize stage.
            DamagedFile: a file is cut off, or is not what the contract says.
        """
        path = folder / "meta.json"
        try:
            meta = Meta(**read_json(path))
        except TypeError as error:
            raise DamagedFile(path, error) from error
        arrays = mapped(folder, DTYPES)
        for name in ("item", "timestamp", "action", "label", "session", "split"):
            found = len(arrays[name])
            if found != meta.num_events:
                raise DamagedFile(
                    folder / f"{name}.npy", f"expected {meta.num_events} rows, found {found}"
                )
        return cls(meta=meta, **arrays)

    def user_of_event(self) -> np.ndarray:
        """User index of every event, int64 [E]."""
        return np.repeat(np.arange(self.meta.num_users), np.diff(self.user_offsets))

    def second_start(self) -> np.ndarray:
        """First row of each event's user and second, int64 [E]: what lies before it is earlier."""
        starts = np.ones(self.meta.num_events, dtype=bool)
        starts[1:] = np.diff(self.timestamp) != 0
        starts[self.user_offsets[:-1][np.diff(self.user_offsets) > 0]] = True
        return np.maximum.accumulate(np.where(starts, np.arange(self.meta.num_events), 0))


def opening(user: np.ndarray, session: np.ndarray, newest: int = -1) -> tuple[np.ndarray, int]:
    """Rows that open a session, bool [R], and the `newest` of the next call.

    Args:
        user: index of the user of each row, ascending, [R].
        session: number of each row's session, [R].
        newest: what the call for the rows before these returned.
    """
    key = (user.astype(np.int64) << 32) | session.astype(np.int64)
    so_far = np.maximum.accumulate(np.concatenate([[newest], key]))
    return key > so_far[:-1], int(so_far[-1])
