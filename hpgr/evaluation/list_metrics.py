"""Metrics of the order inside a list of labelled items: NDCG@k, MRR and AUC of every list.

Items with equal scores count as their mean over all orders among themselves: a model that tells
nothing apart gets what a random order gets, neither the top of a list nor its end. (A list may hold
several positives, which tie with each other at no loss; `hpgr.metrics.tied_rank` knows one.)
Source: McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in
the Presence of Tied Scores", ECIR 2008. Reads and writes nothing.

Shapes: L lists, C items in all, G groups of equal scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpgr.metrics import group_auc


@dataclass(frozen=True)
class TiedGroups:
    """Groups of equal scores, the best of each list first; int64 [G] each.

    `of` is the number of the list, `above` counts items of the list with a better score, `size`
    items of the group and `positives` the positive ones among them.
    """

    of: np.ndarray
    above: np.ndarray
    size: np.ndarray
    positives: np.ndarray

    @classmethod
    def found(cls, offsets: np.ndarray, label: np.ndarray, score: np.ndarray) -> TiedGroups:
        """In lists that are `offsets` [L + 1] of `label` and `score` [C].

        Raises:
            ValueError: a score is NaN.
        """
        if np.isnan(score).any():
            raise ValueError("scores hold NaN: the model diverged or was saved broken")
        of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((-score, of))
        score = score[order]
        new = np.ones(len(of), dtype=bool)
        new[1:] = (of[1:] != of[:-1]) | (score[1:] != score[:-1])
        start = np.flatnonzero(new)
        positives = np.add.reduceat(label[order].astype(np.int64), start) if len(start) else start
        size = np.diff(np.append(start, len(of)))
        return cls(of[start], start - offsets[of[start]], size, positives)


def ndcg_in_lists(groups: TiedGroups, num_lists: int, k: int) -> np.ndarray:
    """NDCG@k of each list, a positive gaining 1 and any other item 0; float64 [L].

    Every list has a positive. Source of the measure: Järvelin and Kekäläinen, "Cumulated gain-based
    evaluation of IR techniques", ACM TOIS 20(4), 2002.
    """
    longest = int((groups.above + groups.size).max(initial=0))
    place = np.arange(1, longest + 1)
    summed = np.append(0.0, np.cumsum(np.where(place <= k, 1.0 / np.log2(place + 1.0), 0.0)))
    discount = (summed[groups.above + groups.size] - summed[groups.above]) / groups.size
    gain = np.bincount(groups.of, weights=groups.positives * discount, minlength=num_lists)
    ideal = np.bincount(groups.of, weights=groups.positives, minlength=num_lists)
    found: np.ndarray = gain / summed[ideal.astype(np.int64)]
    return found


def reciprocal_rank_in_lists(groups: TiedGroups, num_lists: int) -> np.ndarray:
    """Mean of 1 / place of the first positive of each list, float64 [L]; every list has one.

    The first of m positives among n equal items is at place j with the chance that the j - 1 before
    it are all negative, times m / (n - j + 1).
    """
    taken = np.flatnonzero(groups.positives > 0)
    first = taken[np.unique(groups.of[taken], return_index=True)[1]]
    above, size, positives = groups.above[first], groups.size[first], groups.positives[first]
    found, none_yet = np.zeros(num_lists), np.ones(num_lists)
    for place in range(1, int(size.max(initial=0)) + 1):
        left = np.maximum(size - place + 1, 1)  # not placed yet; beyond a group none_yet is 0
        found += none_yet * positives / left / (above + place)
        none_yet *= np.maximum(left - positives, 0) / left
    return found


def list_metrics(
    offsets: np.ndarray, label: np.ndarray, score: np.ndarray, cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """auc, ndcg@k and mrr of every list, float64 [L] each; every list has both labels.

    Args:
        offsets: bounds of the lists, int64 [L + 1].
        label: 0 or 1, [C].
        score: higher is better, [C].
        cutoffs: the k of NDCG.

    Raises:
        ValueError: a score is NaN.
    """
    num_lists = len(offsets) - 1
    of = np.repeat(np.arange(num_lists), np.diff(offsets))
    groups = TiedGroups.found(offsets, label, score)
    return {
        "auc": group_auc(of, label, score)[1],
        **{f"ndcg@{k}": ndcg_in_lists(groups, num_lists, k) for k in cutoffs},
        "mrr": reciprocal_rank_in_lists(groups, num_lists),
    }
