"""A finder for many threads: questions that wait at the same time are answered in one pass.

Whoever has its turn answers for all who wait, so nobody waits for a batch to fill, and a server
that is not busy answers at once. There is no thread of its own. Reads and writes nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from hpgr.data.histories import Histories
from hpgr.evaluation.model_protocols import RankingModel
from hpgr.registry.bundle import Serving
from hpgr.serving.best_items import Finder, Found, Wanted


@dataclass(eq=False)
class Waiting:
    """A question that waits, and its answer once somebody has it."""

    histories: Histories
    wanted: Wanted  # only equal ones share a pass
    found: Found | None = None


class JointFinder(Finder):
    """Answers as the `Finder` does; a question with items to allow or deny is answered alone."""

    def __init__(self, scorer: RankingModel, serving: Serving, popularity: np.ndarray) -> None:
        super().__init__(scorer, serving, popularity)
        self._turn = threading.Lock()
        self._door = threading.Lock()
        self._waiting: list[Waiting] = []

    def find(
        self, histories: Histories, wanted: Wanted, eligible: np.ndarray | None = None
    ) -> Found:
        """See `Finder.find`."""
        if eligible is not None:
            with self._turn:
                return super().find(histories, wanted, eligible)
        own = Waiting(histories, wanted)
        with self._door:
            self._waiting.append(own)
        with self._turn:
            if own.found is None:
                self._answer(self._group(own))
            if own.found is None:
                self._answer([own])
        assert own.found is not None
        return own.found

    def _group(self, own: Waiting) -> list[Waiting]:
        """Take `own` out of those who wait, and with it all that fit into one pass."""
        with self._door:
            alike = [one for one in self._waiting if one.wanted == own.wanted and one is not own]
            alike.insert(0, own)
            first = next(self.parts(Histories.joined([one.histories for one in alike])))
            ends = np.cumsum([len(one.histories) for one in alike])
            group = alike[: max(1, int((ends <= first.stop).sum()))]
            self._waiting = [one for one in self._waiting if one not in group]
        return group

    def _answer(self, group: list[Waiting]) -> None:
        """Answer all of a group; where that fails, the others' questions stay open, each alone."""
        joined = Histories.joined([one.histories for one in group])
        try:
            found = super().find(joined, group[0].wanted)
        except Exception:
            if len(group) == 1:
                raise
            return
        start = 0
        for one in group:
            stop = start + len(one.histories)
            one.found = found.take(slice(start, stop))
            start = stop
