"""CTR (K1): the probability by every model that a candidate is liked, given what came before it.

The simplest models to beat are three means: of the item, of the user, and of both.
Reads the arrays of `hpgr.data.log`. Writes nothing.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from hpgr.config import Evaluate
from hpgr.data.batches import CandidateRows
from hpgr.data.log import TRAIN, EventLog
from hpgr.evaluation.model_protocols import Ranker
from hpgr.evaluation.protocols import LabelledQueries
from hpgr.metrics import auc, expected_calibration_error, gauc, log_loss


def score(
    network: Ranker,
    log: EventLog,
    candidates: LabelledQueries,
    *,
    max_history: int,
    title: str,
) -> np.ndarray:
    """Predicted probability of every candidate, float32 [C]; a user's queries share windows.

    Raises:
        ValueError: the network returned something that is no probability.
    """
    parts = []
    with tqdm(total=len(candidates), desc=title, unit="query", mininterval=2.0) as bar:
        for windows in candidates.windows(log, max_history).parts():
            asked = candidates.take(windows.queries)
            count = np.diff(asked.offsets)
            rows = CandidateRows(
                offsets=asked.offsets[windows.bounds - windows.bounds[0]],
                item=asked.item,
                visible=np.repeat(windows.visible(asked.end), count),
                time=np.repeat(asked.request_time, count),
                label=asked.label,
            )
            parts.append(network.rank_rows(windows.histories(log), rows))
            bar.update(len(asked))
    probability = np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"{title}: expected pCTR between 0 and 1, found other values or NaN")
    return probability


def mean_models(
    log: EventLog, candidates: LabelledQueries, *, prior_events: float
) -> dict[str, np.ndarray]:
    """Probability of every candidate from smoothed means, float64 [C] a model.

    `item_mean` counts the training events of the item, `user_mean` the events that the query may
    see, all of them; both are drawn to the training mean with the weight of `prior_events` events.
    `item_plus_user_mean` adds their log odds and takes the common mean off once, so that it is a
    probability; it orders candidates slightly better than the plain sum.
    """
    train = log.split == TRAIN
    label = np.asarray(log.label, dtype=np.float64)
    common = float(np.clip(label[train].mean() if train.any() else 0.5, 1e-6, 1 - 1e-6))
    num_items = log.meta.num_items
    count = np.bincount(log.item[train], minlength=num_items)
    liked = np.bincount(log.item[train], weights=label[train], minlength=num_items)
    item = ((liked + prior_events * common) / (count + prior_events))[candidates.item]
    total = np.concatenate([[0.0], np.cumsum(label)])
    start = log.user_offsets[candidates.user]
    seen = candidates.end - start
    running = total[candidates.end] - total[start]
    user = np.repeat(
        (running + prior_events * common) / (seen + prior_events), np.diff(candidates.offsets)
    )
    odds = _log_odds(item) + _log_odds(user) - _log_odds(np.asarray(common))
    return {
        "item_mean": item,
        "user_mean": user,
        "item_plus_user_mean": 1.0 / (1.0 + np.exp(-odds)),
    }


def ranking_metrics(
    candidates: LabelledQueries, probability: np.ndarray, settings: Evaluate
) -> dict[str, float]:
    """auc, gauc, log_loss and calibration_error of one model; the labels hold both classes."""
    label = candidates.label
    result = {
        "auc": auc(label, probability),
        "gauc": gauc(candidates.candidate_user(), label, probability),
        "log_loss": float(log_loss(label, probability).mean()),
        "calibration_error": expected_calibration_error(
            label, probability, settings.calibration_bins
        ),
    }
    return {name: value for name, value in result.items() if value is not None}


def _log_odds(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log1p(-probability)
