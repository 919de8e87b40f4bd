"""The order in which the items nearest to a history are served.

    score = log p(next) + w * log p(like)

p(next) is the softmax over the catalogue of cosine / temperature, the logits as the network was
trained; p(like) is pCTR. The softmax's denominator is the same for all items of a query, so it is
left out. w = 0 is retrieval's own order. Evaluation, the gate and serving order by this code. Reads
and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpgr.data.histories import Histories, offsets_of
from hpgr.data.log import FIRST_ITEM
from hpgr.evaluation.model_protocols import Ranker
from hpgr.metrics import PROBABILITY_FLOOR, tied_rank


@dataclass(frozen=True)
class Blend:
    """The weight w of log p(like), at least 0, and the temperature of the network's softmax.

    `like_weight` None is the order by pCTR alone, in which versions without a weight were judged.
    `temperature` may be None where the weight is 0 or None.
    """

    like_weight: float | None
    temperature: float | None

    @property
    def retrieval_only(self) -> bool:
        """True if pCTR has no say."""
        return self.like_weight == 0

    def log_next(self, cosine: np.ndarray) -> np.ndarray:
        """Return log p(next) of each item but for its query's constant, float64, same shape.

        float64, so that two cosines that differ stay different.
        """
        return cosine.astype(np.float64) / (self.temperature or 1.0)

    def scores(self, log_next: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Return the scores that order items, of the shape of both; NaN where `like` is NaN."""
        if self.like_weight is None:
            return like
        return log_next + self.like_weight * np.log(np.maximum(like, PROBABILITY_FLOOR))


def likes(network: Ranker, histories: Histories, items: np.ndarray) -> np.ndarray:
    """Return pCTR of the `items` [Q, N] of each query, float32 [Q, N]; -inf where an item is -1.

    Raises:
        ValueError: a probability is NaN, which would put its query's target first.
    """
    filled = items >= 0
    like = np.full(items.shape, -np.inf, dtype=np.float32)
    like[filled] = network.rank(histories, offsets_of(filled.sum(axis=1)), items[filled])
    if np.isnan(like).any():
        raise ValueError("pCTR holds NaN: the model diverged or was saved broken")
    return like


def reorder(
    blend: Blend,
    retrieved: np.ndarray,
    cosine: np.ndarray,
    like: np.ndarray,
    target: np.ndarray,
    ranks: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Order the `retrieved` items; a target that was not retrieved keeps its place below.

    Args:
        blend: the order.
        retrieved: items, best first, -1 where fewer are left, [Q, N].
        cosine: retrieval's scores of these, [Q, N].
        like: their pCTR, [Q, N]; see `likes`.
        target: hidden items, [Q].
        ranks: of the targets in retrieval, [Q].

    Returns:
        New ranks [Q] (`tied_rank`) and the reordered items [Q, N].
    """
    if blend.retrieval_only:
        return ranks, retrieved
    filled = retrieved >= 0
    score = np.where(filled, blend.scores(blend.log_next(cosine), like), -np.inf)
    order = np.argsort(-score, axis=1, kind="stable")
    is_target = (retrieved == target[:, None]) & (target[:, None] >= FIRST_ITEM)
    reference = np.where(is_target, score, -np.inf).max(axis=1, keepdims=True)
    better = (score > reference).sum(axis=1)
    tied = (score == reference).sum(axis=1) - 1
    below = np.maximum(ranks, filled.sum(axis=1) + 1)
    new_ranks = np.where(is_target.any(axis=1), tied_rank(better, tied), below)
    return new_ranks, np.take_along_axis(retrieved, order, axis=1)
