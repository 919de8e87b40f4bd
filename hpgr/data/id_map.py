"""Between the indices of a log and those of a model, through the external ids that both know.

An external id is what the outside calls an item or action; an index is its row in the arrays of one
log or one model. Reads the vocabulary tables of a sessionized log or of a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from hpgr.data.base_folder import VOCABULARY
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM, UNKNOWN

NO_ACTION = 0


class Ids(NamedTuple):
    """Index of every external id of one vocabulary."""

    items: Mapping[str, int]
    actions: Mapping[str, int]

    @classmethod
    def read(cls, folder: Path) -> Ids:
        """From the tables of the sessionize stage, or of a bundle, below `folder`."""
        return cls(*(read_indices(folder, table) for table in cls._fields))


def read_indices(folder: Path, table: str) -> dict[str, int]:
    """Index of every external id in TABLE.parquet below `folder`; a key of `VOCABULARY`."""
    index, external = VOCABULARY[table]
    rows = pq.read_table(folder / f"{table}.parquet", columns=[index, external])
    return dict(zip(rows[external].to_pylist(), rows[index].to_pylist(), strict=True))


@dataclass(frozen=True)
class IdMap:
    """The model's index of every index of the log: `item` int64 [V] and `action` int64 [A].

    An item that the model does not know is its unknown item, such an action is none.
    """

    item: np.ndarray
    action: np.ndarray

    @classmethod
    def between(cls, log: Ids, model: Ids) -> IdMap:
        """From the indices of `log` to those of `model`."""
        return cls(
            _translated(log.items, model.items, first=FIRST_ITEM, unknown=UNKNOWN),
            _translated(log.actions, model.actions, first=NO_ACTION + 1, unknown=NO_ACTION),
        )

    @cached_property
    def known(self) -> np.ndarray:
        """The log's items that the model knows, ascending."""
        return np.flatnonzero(self.item >= FIRST_ITEM)

    def histories(self, histories: Histories) -> Histories:
        """Histories of the log as the model reads them."""
        return histories.with_ids(self.item, self.action)

    def scores(self, scores: np.ndarray) -> np.ndarray:
        """The model's scores of its items for the log's, float32 [Q, V]; -inf where it has none."""
        found = np.full((len(scores), len(self.item)), -np.inf, dtype=np.float32)
        found[:, self.known] = scores[:, self.item[self.known]]
        return found


def _translated(
    own: Mapping[str, int], other: Mapping[str, int], *, first: int, unknown: int
) -> np.ndarray:
    """Index in `other` of every index in `own`; those below `first` are reserved and stay."""
    index = np.full(max(own.values(), default=first - 1) + 1, unknown, dtype=np.int64)
    index[:first] = np.arange(first)
    index[list(own.values())] = [other.get(external, unknown) for external in own]
    return index
