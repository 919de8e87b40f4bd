"""Shown lists as queries: the users that saw them, what they may see, and the items shown.

Reads the table of `hpgr.data.impressions`. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpgr.data.impressions import NO_USER
from hpgr.data.list_log import places
from hpgr.evaluation.protocols import CandidateQueries


@dataclass(frozen=True)
class ShownLists(CandidateQueries):
    """Q lists with C shown items.

    Of each item, [C]: `number` int64 of its list in the table; `external` int64, which tells apart
    items that are unknown to the log; `position` float64, NaN where it is not known.
    """

    number: np.ndarray
    external: np.ndarray
    position: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, split: int) -> ShownLists:
        """The lists of `split` whose user the log has."""
        coded = table["item_id"].combine_chunks().dictionary_encode().indices
        table = table.drop_columns(["item_id", "impression_id"]).append_column("external", coded)
        kept = pc.and_(pc.equal(table["split"], split), pc.not_equal(table["user"], NO_USER))
        column = {name: table.filter(kept)[name].to_numpy() for name in table.column_names}
        number = column["impression"]
        first = np.flatnonzero(np.diff(number, prepend=-1))
        return cls(
            user=column["user"][first].astype(np.int64),
            end=column["end"][first],
            request_time=column["timestamp"][first],
            offsets=np.append(first, len(number)).astype(np.int64),
            item=column["item"].astype(np.int64),
            label=column["label"],
            number=number,
            external=column["external"].astype(np.int64),
            position=column["position"].astype(np.float64),
        )

    @property
    def place(self) -> np.ndarray:
        """Number of items shown before each, int32 [C]; -1 where that is not known."""
        return places(self.offsets, self.position)

    @property
    def placed(self) -> bool:
        """The place of every item is known."""
        return bool(len(self.position)) and not np.isnan(self.position).any()

    def with_both_labels(self) -> ShownLists:
        """The lists in which something was taken and something was not."""
        taken = np.append(0, np.cumsum(self.label == 1))
        positives, size = np.diff(taken[self.offsets]), np.diff(self.offsets)
        return self.take(np.flatnonzero((positives > 0) & (positives < size)))
