"""Metrics of retrieval (from ranks) and of ranking (from probabilities and labels).

Retrieval has one hidden item a query, so hit rate equals recall and NDCG is 1 / log2(rank + 1).
Imports numpy only; reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpgr.data.log import FIRST_ITEM

MISS = 2**31 - 1  # rank of a hidden item that cannot be answered: beyond every cutoff, an int32
PROBABILITY_FLOOR = 1e-7  # log loss of a certain and wrong answer stays finite


def ranks_of(
    scores: np.ndarray,
    target: np.ndarray,
    removed: tuple[np.ndarray, np.ndarray] | None,
    *,
    catalogue_chunk: int,
) -> np.ndarray:
    """Exact rank of each query's target among the catalogue, from 1; int64 [Q].

    Ties cost half: `1 + better + ceil(tied / 2)`, the expected rank under random order, rounded
    against the model. A constant scorer lands in the middle of the catalogue, not at its top.

    Args:
        scores: [Q, num_items], higher is better; the reserved columns are not read.
        target: item ids [Q]. A reserved id (an item unknown to the vocabulary) ranks last; one that
            was removed itself, as a repeat, gets MISS.
        removed: query index and item id of the pairs that do not compete, each pair once, as
            `removed_pairs` makes them; None removes nothing.
        catalogue_chunk: columns compared at a time; bounds the temporary memory.

    Raises:
        ValueError: a score is NaN, which would compare as worse than everything.
    """
    num_queries, num_items = scores.shape
    query = np.arange(num_queries)
    reference = scores[query, target][:, None]
    better = np.zeros(num_queries, dtype=np.int64)
    tied = np.zeros(num_queries, dtype=np.int64)
    for start in range(FIRST_ITEM, num_items, catalogue_chunk):
        chunk = scores[:, start : min(start + catalogue_chunk, num_items)]
        if np.isnan(chunk).any():
            raise ValueError("scores hold NaN: the model diverged or was saved broken")
        better += (chunk > reference).sum(axis=1)
        tied += (chunk == reference).sum(axis=1)
    tied -= 1  # the target itself
    competing = np.full(num_queries, num_items - FIRST_ITEM)
    if removed is not None:
        of_query, item = removed
        value = scores[of_query, item]
        np.subtract.at(better, of_query, value > reference[of_query, 0])
        np.subtract.at(tied, of_query, value == reference[of_query, 0])
        np.subtract.at(competing, of_query, 1)
    ranks = np.where(target >= FIRST_ITEM, 1 + better + (tied + 1) // 2, competing + 1)
    if removed is not None:
        ranks[of_query[item == target[of_query]]] = MISS
    return ranks


def removed_pairs(offsets: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (query, item) pairs that leave the ranking: the items already seen.

    Args:
        offsets: int64 [Q + 1], bounds of the histories in `item`.
        item: item ids of all histories.

    Returns:
        Query index and item id, each pair once, reserved ids left out.
    """
    query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keep = item >= FIRST_ITEM
    width = int(item.max(initial=0)) + 1  # one key a pair: np.unique over columns is far slower
    key = np.unique(query[keep] * width + item[keep].astype(np.int64))
    return key // width, key % width


def top_items(
    scores: np.ndarray, removed: tuple[np.ndarray, np.ndarray] | None, k: int
) -> np.ndarray:
    """The k best items of each query, best first, int64 [Q, k]; -1 where fewer are left."""
    scores = scores.copy()
    scores[:, :FIRST_ITEM] = -np.inf
    if removed is not None:
        scores[removed] = -np.inf
    k = min(k, scores.shape[1] - FIRST_ITEM)
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    value = np.take_along_axis(scores, best, axis=1)
    order = np.lexsort((best, -value), axis=1)  # equal scores in order of item id: reproducible
    best, value = (np.take_along_axis(a, order, axis=1) for a in (best, value))
    return np.where(np.isneginf(value), -1, best)


def retrieval_metrics(ranks: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """hr@k, ndcg@k and mrr of every query, each float64 [Q]; their means are the model's scores."""
    gain = 1.0 / np.log2(ranks + 1.0)
    result: dict[str, np.ndarray] = {}
    for k in cutoffs:
        result[f"hr@{k}"] = (ranks <= k).astype(np.float64)
    for k in cutoffs:
        result[f"ndcg@{k}"] = np.where(ranks <= k, gain, 0.0)
    result["mrr"] = 1.0 / ranks
    return result


def coverage(top: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that was recommended to somebody; `num_items` with reserved ids."""
    return len(np.unique(top[top >= FIRST_ITEM])) / max(1, num_items - FIRST_ITEM)


def popularity_share(top: np.ndarray, head: np.ndarray) -> float:
    """Share of the recommended places that went to the items marked in `head`, bool [num_items]."""
    shown = top[top >= FIRST_ITEM]
    return float(head[shown].mean()) if len(shown) else 0.0


def group_auc(
    group: np.ndarray, label: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC inside every group that has both classes, ties counted half (Mann-Whitney).

    Args:
        group: int [C], for example the user of each candidate.
        label: 0 or 1, [C].
        score: higher means more likely positive, [C].

    Returns:
        The groups with both classes, their AUC, and their number of candidates.
    """
    if not len(group):
        return np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64)
    if np.isnan(score).any():
        raise ValueError("scores hold NaN: the model diverged or was saved broken")
    order = np.lexsort((score, group))
    group, label, score = group[order], label[order].astype(np.float64), score[order]
    names, start, index, count = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    new = np.ones(len(group), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    tie = np.cumsum(new) - 1
    place = np.arange(len(group)) - start[index] + 1.0
    mean_place = np.bincount(tie, weights=place) / np.bincount(tie)
    positives = np.bincount(index, weights=label)
    rank_sum = np.bincount(index, weights=mean_place[tie] * label)
    both = (positives > 0) & (positives < count)
    positives, count = positives[both], count[both]
    area = (rank_sum[both] - positives * (positives + 1) / 2) / (positives * (count - positives))
    return names[both], area, count


def auc(label: np.ndarray, score: np.ndarray) -> float | None:
    """Chance that a positive outscores a negative, ties half; None where a class is missing."""
    _, area, _ = group_auc(np.zeros(len(label), dtype=np.int64), label, score)
    return float(area[0]) if len(area) else None


def gauc(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> float | None:
    """Mean AUC of users with both classes, weighted by their candidates; None without any."""
    _, area, count = group_auc(user, label, score)
    return float(np.average(area, weights=count)) if len(area) else None


def log_loss(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Negative log likelihood of every candidate in nats, float64 [C]."""
    p = np.clip(probability.astype(np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -np.where(label == 1, np.log(p), np.log1p(-p))


def calibration(
    label: np.ndarray, probability: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean prediction, share of positives and count of every equal-width bin that is not empty."""
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    predicted = np.bincount(index, weights=probability, minlength=bins)[filled] / count[filled]
    observed = np.bincount(index, weights=label, minlength=bins)[filled] / count[filled]
    return predicted, observed, count[filled]


def expected_calibration_error(label: np.ndarray, probability: np.ndarray, bins: int) -> float:
    """Mean distance of predicted and observed positive rate over the bins, weighted by count.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3.
    """
    predicted, observed, count = calibration(label, probability, bins)
    return float(np.average(np.abs(predicted - observed), weights=count)) if len(count) else 0.0
