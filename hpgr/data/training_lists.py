"""Training lists as candidates of a batch: drawn anew for every step, each with its own history.

A list sees the events of its user strictly before its own second, and neither kind nor time of what
comes next: the history ends there and asks at the time of the list, as it does when the model
is served. A window that lists share would hold the time of the next event. Imports numpy only.
"""

from __future__ import annotations

import numpy as np

from hpgr.data.histories import Histories, histories
from hpgr.data.list_log import ListLog
from hpgr.data.log import TRAIN, EventLog


class TrainingLists:
    """Draws of training lists; `num_drawn` of them make an epoch of `num_batches` batches."""

    def __init__(
        self,
        log: EventLog,
        lists: ListLog,
        *,
        max_history: int,
        batch_tokens: int,
        num_batches: int,
    ) -> None:
        """A draw's histories and items together are at most `batch_tokens`, but for one list."""
        self.log, self.lists, self.max_history = log, lists, max_history
        self.batch_tokens = batch_tokens
        self.numbers = lists.of(TRAIN)
        self.num_drawn = -(-len(self.numbers) // num_batches)

    def draw(self, random: np.random.Generator) -> tuple[Histories, np.ndarray, np.ndarray]:
        """Draw lists evenly, with replacement.

        Returns:
            Their Q histories, which ask at the time of each list; the bounds of their shown items,
            int64 [Q + 1]; and the rows of these in the arrays of the lists, int64.
        """
        log, lists = self.log, self.lists
        drawn = self.numbers[random.integers(0, len(self.numbers), self.num_drawn)]
        before = lists.end[drawn] - log.user_offsets[lists.user[drawn]]
        size = lists.offsets[drawn + 1] - lists.offsets[drawn]
        cost = np.minimum(before, self.max_history) + size
        fits = np.cumsum(cost) <= self.batch_tokens
        fits[0] = True
        drawn = drawn[fits]
        past = histories(
            log, lists.user[drawn], lists.end[drawn], lists.timestamp[drawn], self.max_history
        )
        return past, *lists.items_of(drawn)
