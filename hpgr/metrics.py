"""Every metric of the project: retrieval from ranks, ranking from probabilities and labels.

Retrieval has one hidden item a query. Training's validation, evaluation and the gate all use these
functions, so a figure means the same everywhere. Imports numpy only; reads and writes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hpgr.data.log import FIRST_ITEM

MISS = 2**31 - 1  # rank of a hidden item that cannot be answered: beyond every cutoff, an int32
PROBABILITY_FLOOR = 1e-7  # log loss of a certain and wrong answer stays finite
BASKET_MONITOR = "validation_basket_ndcg@10"  # needs baskets
BASKET = "basket."  # before the name of a metric of whole baskets (B1)
LOWER_IS_BETTER = frozenset({"log_loss", "calibration_error"})
RANKING_MONITORS = (
    "validation_auc",
    "validation_ranking",
    "validation_heads",
)  # need a ranking
LABELS = {
    "hr": "HR",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "coverage": "coverage",
    "head_share": "head share",
}


def metric_label(metric: str) -> str:
    """Return a metric's name for a page: `hr@10` is HR@10."""
    name, at, k = metric.partition("@")
    return LABELS.get(name, name) + at + k


def protocols_of(metric: str) -> tuple[str, ...]:
    """Return the protocols that may give the gate's `metric`; of two, the split says which."""
    if metric == "auc":
        return ("K1",)
    return ("B1",) if metric.startswith(BASKET) else ("R1", "R2")


def best_value(metric: str, values: Iterable[float]) -> float:
    """Return the best of several models' values."""
    return (min if metric in LOWER_IS_BETTER else max)(values)


def tied_rank(better: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Return the rank, from 1, of an item with `better` items above it and `tied` others beside it.

    Ties cost half: `1 + better + ceil(tied / 2)`, the expected rank under random order, rounded
    against the model. A constant scorer lands in the middle of the catalogue, not at its top.
    Source: McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently
    in the Presence of Tied Scores", ECIR 2008.
    """
    return 1 + better + (tied + 1) // 2


def ranks_of(
    scores: np.ndarray,
    target: np.ndarray,
    removed: tuple[np.ndarray, np.ndarray] | None,
    *,
    catalogue_chunk: int | None = None,
) -> np.ndarray:
    """Return the exact rank, as `tied_rank` counts it, of each query's target; int64 [Q].

    Args:
        scores: [Q, num_items], higher is better; the reserved columns are not read.
        target: item ids [Q]. A reserved id (an item unknown to the vocabulary) ranks last; one that
            was removed itself, as a repeat, gets MISS.
        removed: query index and item id of the pairs that do not compete, each pair once, as
            `removed_pairs` makes them; None removes nothing.
        catalogue_chunk: columns compared at a time; bounds the temporary memory. None: all.

    Raises:
        ValueError: a score is NaN, which would compare as worse than everything.
    """
    num_queries, num_items = scores.shape
    query = np.arange(num_queries)
    reference = scores[query, target][:, None]
    better = np.zeros(num_queries, dtype=np.int64)
    tied = np.zeros(num_queries, dtype=np.int64)
    for start in range(FIRST_ITEM, num_items, catalogue_chunk or num_items):
        chunk = scores[:, start : start + catalogue_chunk if catalogue_chunk else num_items]
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
    ranks = np.where(target >= FIRST_ITEM, tied_rank(better, tied), competing + 1)
    if removed is not None:
        ranks[of_query[item == target[of_query]]] = MISS
    return ranks


def removed_pairs(offsets: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (query, item) pairs that leave the ranking: the items already seen.

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
    scores: np.ndarray,
    removed: tuple[np.ndarray, np.ndarray] | None,
    k: int,
    *,
    first: int = FIRST_ITEM,
) -> np.ndarray:
    """Return the k best items of each query, best first, int64 [Q, k]; -1 where fewer are left.

    Equal scores stand in order of item id.

    Args:
        scores: [Q, num_items], higher is better, no NaN.
        removed: query index and item id of the pairs left out; None: none.
        k: places, at least 1.
        first: items before it are left out.
    """
    return take_top(np.array(scores), removed, k, first=first)[0]


def take_top(
    scores: np.ndarray,
    removed: tuple[np.ndarray, np.ndarray] | None,
    k: int,
    *,
    first: int = FIRST_ITEM,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `top_items` does, and the items' scores [Q, k], -inf where none is left.

    `scores` are overwritten where items are left out.
    """
    import torch  # several times as fast as numpy's partition, but slow to import

    from hpgr.largest import largest

    scores[:, :first] = -np.inf
    if removed is not None:
        scores[removed] = -np.inf
    k = max(0, min(k, scores.shape[1] - first))
    # One more than asked for: it tells if the cut lies among equals.
    column, value = largest(torch.from_numpy(scores), min(k + 1, scores.shape[1]))
    item, best = column[:, :k].numpy(), value[:, :k].numpy()
    equal = (value[:, 1:] == value[:, :-1]) & (value[:, 1:] > -torch.inf)
    for row in equal.any(1).nonzero()[:, 0].tolist():
        tied = np.flatnonzero(scores[row] >= best[row, -1])
        item[row] = tied[np.argsort(-scores[row, tied], kind="stable")[:k]]
        best[row] = scores[row, item[row]]
    return np.where(np.isneginf(best), -1, item), best


def hit_rate(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return HR@k of every query: 1 where the hidden item is among the first k places, float64 [Q].

    With one hidden item it equals recall@k. Source: Deshpande and Karypis, "Item-based top-N
    recommendation algorithms", ACM TOIS 22(1), 2004.
    """
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return NDCG@k of every query: 1 / log2(rank + 1) of a hit, 0 of a miss, float64 [Q].

    With one hidden item the ideal gain is 1. Source: Järvelin and Kekäläinen, "Cumulated
    gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002.
    """
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def reciprocal_rank(ranks: np.ndarray) -> np.ndarray:
    """Return 1 / rank of every query, float64 [Q]; the mean is MRR.

    Source: Voorhees, "The TREC-8 Question Answering Track Report", TREC 1999.
    """
    return 1.0 / ranks


def retrieval_metrics(ranks: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """hr@k, ndcg@k and mrr of every query, each float64 [Q]; their means are the model's scores."""
    result = {f"hr@{k}": hit_rate(ranks, k) for k in cutoffs}
    result |= {f"ndcg@{k}": ndcg(ranks, k) for k in cutoffs}
    return result | {"mrr": reciprocal_rank(ranks)}


def coverage(top: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that was recommended at least once; `num_items` with reserved ids.

    Source: catalogue coverage of Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy", RecSys
    2010.
    """
    return len(np.unique(top[top >= FIRST_ITEM])) / max(1, num_items - FIRST_ITEM)


def head_share(top: np.ndarray, head: np.ndarray) -> float:
    """Share of the recommended places that went to the items marked in `head`, bool [num_items].

    Source: one minus the share of long-tail items of Abdollahpouri, Burke and Mobasher, arXiv
    1901.07555, over all places instead of user by user.
    """
    shown = top[top >= FIRST_ITEM]
    return float(head[shown].mean()) if len(shown) else 0.0


def auc_of_counts(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """AUC of each row of counts, float64 [R]; NaN where a class is missing.

    The chance that a positive scores above a negative, ties half: the Mann-Whitney statistic
    divided by the number of pairs. Source: Hanley and McNeil, "The meaning and use of the area
    under a receiver operating characteristic (ROC) curve", Radiology 143, 1982.

    Args:
        positives: how many positives have each distinct score, lowest score first, [R, D].
        negatives: the same of the negatives, [R, D].
    """
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    won = (positives * below).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def auc(label: np.ndarray, score: np.ndarray) -> float | None:
    """AUC of labels 0 or 1 [C] by `score` [C], as `auc_of_counts`; None where a class is missing.

    Raises:
        ValueError: a score is NaN.
    """
    _, area, _ = group_auc(np.zeros(len(label), dtype=np.int64), label, score)
    return float(area[0]) if len(area) else None


def group_auc(
    group: np.ndarray, label: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC as `auc_of_counts` inside every group that has both classes.

    Args:
        group: int [C], for example the user of each candidate.
        label: 0 or 1, [C].
        score: higher means more likely positive, [C].

    Returns:
        The groups with both classes, their AUC, and their number of candidates.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(score).any():
        raise ValueError("scores hold NaN: the model diverged or was saved broken")
    if not len(group):
        return np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64)
    order = np.lexsort((score, group))
    group, label, score = group[order], label[order].astype(np.float64), score[order]
    new = np.ones(len(group), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    start = np.flatnonzero(new)  # of each distinct score of a group
    positives = np.add.reduceat(label, start)
    negatives = np.diff(np.append(start, len(group))) - positives
    names, first, index = np.unique(group[start], return_index=True, return_inverse=True)
    below = np.cumsum(negatives) - negatives / 2
    below -= (np.cumsum(negatives) - negatives)[first][index]  # those of earlier groups
    won = np.add.reduceat(positives * below, first)
    liked, disliked = np.add.reduceat(positives, first), np.add.reduceat(negatives, first)
    both = (liked > 0) & (disliked > 0)
    count = (liked + disliked).astype(np.int64)
    return names[both], won[both] / (liked * disliked)[both], count[both]


def gauc(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> float | None:
    """Mean AUC of users with both classes, weighted by their candidates; None without any.

    Source: the user weighted AUC of Zhou et al., "Deep Interest Network for Click-Through Rate
    Prediction", arXiv 1706.06978, section "Metrics".
    """
    _, area, count = group_auc(user, label, score)
    return float(np.average(area, weights=count)) if len(area) else None


def log_loss(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the negative log likelihood of every candidate in nats, float64 [C].

    Source: Good, "Rational Decisions", Journal of the Royal Statistical Society B 14(1), 1952.
    """
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
