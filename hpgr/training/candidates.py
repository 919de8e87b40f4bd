"""Candidates of the pCTR loss: labelled events of the log, or the items of shown lists.

`finetune.candidates` decides, `auto` by what the log has. Whatever it is, validation, calibration
and the start of the ranking head go by the same labels. Reads artifacts/sessions/lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpgr.data.list_log import ListLog
from hpgr.data.log import TRAIN, EventLog
from hpgr.model.list_features import NUM_PLACES
from hpgr.runtime import UserError

TOO_FEW_EVENTS = (
    "the log has too few training events of one label (sessionize.positive_from, "
    "positive_actions; `hpgr doctor` says more)"
)
TOO_FEW_LISTS = (
    "the log has too few shown items of one label in its training lists, or none of its validation "
    "lists has both (data.impressions; sessionize.split: global-time says which list is which)"
)


@dataclass(frozen=True)
class CandidateSource:
    """Candidates come from `lists` or, if that is None, are events of the `log`.

    `can_rank`: there are enough of both labels.
    """

    log: EventLog
    lists: ListLog | None

    @classmethod
    def of(cls, wanted: str, log: EventLog, folder: Path) -> CandidateSource:
        """Choose the source.

        Args:
            wanted: events, impressions, or auto: impressions where a ranking can be learned from
                them, else events.
            log: the sessionized log.
            folder: of the arrays of shown lists; it need not be there.

        Raises:
            UserError: impressions are wanted, and no ranking can be learned from them.
        """
        if wanted == "events":
            return cls(log, None)
        lists = ListLog.open(folder) if folder.is_dir() else None
        if lists is not None and lists.can_rank:
            return cls(log, lists)
        if wanted == "impressions":
            raise UserError(
                f"finetune.candidates is impressions, but {TOO_FEW_LISTS}. Bring such lists, or "
                "set finetune.candidates: auto"
            )
        return cls(log, None)

    @property
    def name(self) -> str:
        """The value of `finetune.candidates` that it is."""
        return "events" if self.lists is None else "impressions"

    @property
    def can_rank(self) -> bool:
        """There are enough of both labels for a ranking head."""
        return self.log.meta.can_rank if self.lists is None else self.lists.can_rank

    def item_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Count the training candidates of each item and the positive ones, int64, float64 [V]."""
        if self.lists is None:
            rows = np.flatnonzero(np.asarray(self.log.split) == TRAIN)
            item, label = self.log.item[rows], self.log.label[rows]
        else:
            rows = self.lists.items_of(self.lists.of(TRAIN))[1]
            item, label = self.lists.item[rows], self.lists.label[rows]
        num_items = self.log.meta.num_items
        weights = np.asarray(label, dtype=np.float32)
        return (
            np.bincount(item, minlength=num_items),
            np.bincount(item, weights=weights, minlength=num_items),
        )

    def place_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Count the items of training lists at each place and those taken, float64 [NUM_PLACES].

        Places beyond count as the last one; items whose place is not known are left out.
        """
        if self.lists is None:
            return np.zeros(NUM_PLACES), np.zeros(NUM_PLACES)
        rows = self.lists.items_of(self.lists.of(TRAIN))[1]
        rows = rows[self.lists.place[rows] >= 0]
        place = np.minimum(self.lists.place[rows], NUM_PLACES - 1)
        weights = np.stack([np.ones(len(rows)), self.lists.label[rows]])
        shown, taken = (np.bincount(place, one, NUM_PLACES) for one in weights)
        return shown, taken

    def describe(self) -> str:
        """Say in words what pCTR is learned from."""
        if self.lists is None:
            return "pCTR of labelled events"
        lists = self.lists.of(TRAIN)
        shown = int(self.lists.size[lists].sum())
        return f"pCTR of {shown:,} items in {len(lists):,} shown lists"
