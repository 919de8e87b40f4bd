"""Recall and NDCG of several hidden items a query, from the scores of the catalogue.

Several hidden items can be tied with each other, so the rounded rank of `hpgr.metrics` could count
more hits than there are places. Here ties count by expectation: an item gets the mean gain of the
places that it and the items tied with it may take, every order being as likely. Source: McSherry
and Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of
Tied Scores", ECIR 2008. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpgr.data.log import FIRST_ITEM


def basket_metrics(
    scores: np.ndarray, offsets: np.ndarray, item: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return recall@k and ndcg@k of every query, float64 [Q]; NaN where nothing is hidden.

    recall@k is the share of the hidden items among the first k places; ndcg@k adds 1 / log2(place
    + 1) for each of them, over the most that as many items can reach in k places.

    Args:
        scores: [Q, num_items], higher is better, -inf for items that do not compete; the reserved
            columns are overwritten.
        offsets: bounds of the hidden items of each query, int64 [Q + 1].
        item: hidden item ids [T]; reserved ids, and those that do not compete, are misses.
        cutoffs: each k.

    Raises:
        ValueError: a score is NaN.
    """
    size = np.diff(offsets)
    query = np.repeat(np.arange(len(size)), size)
    better, tied = _place(scores, query, item, max(cutoffs))
    found = {}
    for name in ("recall", "ndcg"):
        for k in cutoffs:
            gains = np.ones(k) if name == "recall" else 1.0 / np.log2(np.arange(2.0, k + 2))
            total = np.concatenate([[0.0], np.cumsum(gains)])  # of the first 0 .. k places
            gain = (total[np.minimum(better + tied, k)] - total[np.minimum(better, k)]) / tied
            most = size if name == "recall" else total[np.minimum(size, k)]
            reached = np.bincount(query, weights=gain, minlength=len(size))
            nothing = np.full(len(size), np.nan)
            found[f"{name}@{k}"] = np.divide(reached, most, out=nothing, where=size > 0)
    return found


def _place(
    scores: np.ndarray, query: np.ndarray, item: np.ndarray, deepest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number of items above each hidden one and of those equal to it, itself included, int64 [T].

    Below place `deepest` the first number is only known to be no smaller.
    """
    import torch  # slow to import

    from hpgr.largest import largest

    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: the model diverged or was saved broken")
    scores[:, :FIRST_ITEM] = -np.inf
    own = scores[query, item][:, None]
    best = largest(torch.from_numpy(scores), min(deepest, scores.shape[1]))[1].numpy()
    last = best[:, -1:]
    at_the_cut = (scores == last).sum(axis=1)  # equal items may lie on both sides of it
    tied = np.where(own[:, 0] > last[query, 0], (best[query] == own).sum(1), at_the_cut[query])
    better = np.where(np.isneginf(own[:, 0]), deepest, (best[query] > own).sum(axis=1))
    return better, tied
