"""The protocols by which evaluation and serving ask a model, trained or not.

A baseline is a `Retriever`; `hpgr.model.scoring.Scorer` is a `RankingModel`. Writes nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np

from hpgr.data.batches import CandidateRows
from hpgr.data.histories import Histories
from hpgr.model.repeat_counts import Pairs

REASONS = 2  # heaviest anchors of an item, which are shown beside it


class Retriever(Protocol):
    """A model that scores the whole catalogue; callers bound memory by passing few queries."""

    def retrieve(self, histories: Histories) -> np.ndarray:
        """Scores of the catalogue, higher is better, float32 [Q, num_items]."""


@runtime_checkable
class WindowReader(Protocol):
    """A causal network: it answers queries in the middle of a history as if that ended there."""

    def retrieve_rows(
        self, histories: Histories, rows: np.ndarray, request_time: np.ndarray | None = None
    ) -> np.ndarray:
        """Scores of the catalogue, float32 [Q, num_items], after each of `rows` [Q], ascending.

        `request_time` [Q] is theirs; None: that of their histories.
        """

    def rank_rows(self, histories: Histories, rows: CandidateRows) -> np.ndarray:
        """Probability (pCTR) of candidates, float32 [C], each at its own time."""


class Ranker(Retriever, WindowReader, Protocol):
    """A model that also says how likely an item is to be liked."""

    def rank(self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Probability (pCTR) of the jagged candidates of each query, float32 [C]."""


class ListRanker(Ranker, Protocol):
    """A model that may know where its candidates were shown."""

    def rank(
        self,
        histories: Histories,
        offsets: np.ndarray,
        candidates: np.ndarray,
        place: np.ndarray | None = None,
    ) -> np.ndarray:
        """Probability (pCTR) of the jagged candidates of each query, float32 [C].

        `place` [C] counts the items shown before each, -1 not known; None: none is known.
        """


class Answering(Protocol):
    """Histories of Q queries that a network has read, to be asked several things."""

    def retrieve(self, items: slice = slice(None)) -> np.ndarray:
        """Scores of a part of the catalogue, float32 [Q, part], the caller's own.

        Some query has a history.
        """

    def states(self) -> np.ndarray | None:
        """States of length one, float32 [Q, D]; None where a query has no history.

        Their products with `items` and what is `added` are the scores.
        """

    @property
    def added(self) -> Pairs:
        """Amounts that are added to the products, never negative; a pair may come twice."""

    def items(self) -> np.ndarray:
        """Vectors of items of length one, float32 [num_items, D]; some query has a history."""

    def explain(self) -> tuple[np.ndarray, np.ndarray]:
        """As `RankingModel.explain`, of the queries that have a history."""

    def rank(
        self, offsets: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Ranker.rank` [C], with the anchors of candidates and their weights, [C, A]."""


class RankingModel(ListRanker, Protocol):
    """A network, which also says what it looked at."""

    def read(self, histories: Histories) -> Answering:
        """Read histories once for several questions."""

    def explain(
        self,
        histories: Histories,
        offsets: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the anchors in each history, -1 for none, and their weights, [N, A].

        For each query, N = Q, or for each candidate as `rank` places it, N = C.
        """


@runtime_checkable
class Anchored(RankingModel, Protocol):
    """A network whose anchors can be looked at and exchanged."""

    def intervened(self, mode: str) -> AbstractContextManager[None]:
        """Exchange the anchors for the block.

        `mode` is "chosen", "random" (the same ones in each block) or "none".
        """

    def anchors(
        self, histories: Histories, offsets: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Anchors of candidates as `explain` places them and their cosines, both [C, A]."""
