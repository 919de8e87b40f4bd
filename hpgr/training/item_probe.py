"""An intrinsic measure of item vectors: how well they find items of the same session.

A held-out session is one with an event of the validation split. From other items of the session the
item of that event is looked up by cosine of centred vectors, among all items with training events.
Stage 1 gives up no training event for it: no gradient ever sees a validation event.
Every item that is looked up weighs the same, however often it occurs, so that popular items are no
better answers than others. Reads the arrays of `hpgr.data.log`, never the test split.

Shapes: V items, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION, EventLog
from hpgr.metrics import hit_rate, ranks_of, reciprocal_rank
from hpgr.training.device import ALONE, Device

CUTOFF = 20
RECALL, MRR = f"session_recall@{CUTOFF}", "session_mrr"
QUERIES = 8  # events of its session that look an event up, drawn with replacement
CELLS = 1 << 28  # similarities of one measurement, at most
CELLS_AT_A_TIME = 1 << 21


class SessionProbe:
    """A fixed, seeded sample of pairs of items (query, target) of held-out sessions.

    All processes of `among` call every method together, and share the work.
    """

    def __init__(self, log: EventLog, *, seed: int, among: Device = ALONE) -> None:
        self.among = among
        random = np.random.default_rng(seed)
        split, item = np.asarray(log.split), np.asarray(log.item).astype(np.int64)
        self.events = np.bincount(item[split == TRAIN], minlength=log.meta.num_items)
        self.events[:FIRST_ITEM] = 0
        session = (log.user_of_event() << 32) | np.asarray(log.session)
        known = self.events[item] > 0
        held = np.flatnonzero((split == VALIDATION) & known)
        most = max(1, CELLS // (QUERIES * log.meta.num_items))
        if len(held) > most:
            held = np.sort(random.choice(held, most, replace=False))
        others = np.flatnonzero((split != TEST) & known)
        others = others[np.argsort(session[others], kind="stable")]
        low, high = (np.searchsorted(session[others], session[held], s) for s in ("left", "right"))
        drawn = random.random((len(held), QUERIES)) * (high - low)[:, None]
        query = item[others[low[:, None] + drawn.astype(np.int64)]]
        apart = query != item[held, None]
        self.query, self.target = query[apart], np.nonzero(apart)[0]
        weight = (apart / np.maximum(1, apart.sum(1, keepdims=True)))[apart]
        self.target = item[held][self.target]
        of_target = np.bincount(self.target, weights=weight, minlength=1)
        self.weight = weight / of_target[self.target] / max(1, np.count_nonzero(of_target))

    def __call__(self, vectors: Tensor) -> dict[str, float]:
        """Return recall and mean reciprocal rank of vectors [V, D]; nothing without a pair."""
        known = torch.from_numpy(self.events > 0)
        table = vectors.detach().to("cpu", torch.float32)
        table = functional.normalize(table - table[known].mean(0), dim=-1)
        return self.scores(lambda item: (table[torch.from_numpy(item)] @ table.T).numpy())

    def scores(self, similarity: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        """Return the same of a function from items [Q] to their similarities to all, [Q, V]."""
        if not len(self.query):
            return {}
        ranks, step = np.zeros(len(self.query), np.int64), CELLS_AT_A_TIME // len(self.events)
        step = max(1, step)
        for low in self.among.own(range(0, len(self.query), step)):
            query, target = self.query[low : low + step], self.target[low : low + step]
            found = similarity(query)
            found[:, self.events == 0] = -np.inf
            found[np.arange(len(query)), query] = -np.inf
            ranks[low : low + step] = ranks_of(found, target, None)
        rank = self.among.summed(ranks)
        hit, reciprocal = hit_rate(rank, CUTOFF), reciprocal_rank(rank)
        return {RECALL: float(self.weight @ hit), MRR: float(self.weight @ reciprocal)}

    def references(self, closed_form: Tensor, *, seed: int) -> dict[str, dict[str, float]]:
        """Return the scores of what no network made, by name.

        Args:
            closed_form: vectors of `ppmi_svd`, [V, D].
            seed: of random ones.

        Returns:
            `ppmi_svd`; `popularity`: the most frequent items, whatever is asked;
            `like_popularity`: items as frequent as the one that asks; `random` vectors.
        """
        events = self.events.astype(np.float32)
        frequency = np.log1p(events)
        drawn = torch.randn(closed_form.shape, generator=torch.Generator().manual_seed(seed))
        return {
            "ppmi_svd": self(closed_form),
            "popularity": self.scores(lambda item: np.tile(events, (len(item), 1))),
            "like_popularity": self.scores(
                lambda item: -np.abs(frequency[item][:, None] - frequency)
            ),
            "random": self(drawn),
        }


def verdict(found: dict[str, float], references: dict[str, dict[str, float]]) -> str:
    """Return one sentence: vectors of stage 1 beside the best that no network made."""
    if not found:
        return "no validation event has company in its session: item vectors are not measured"
    best = max(references, key=lambda name: references[name][RECALL])
    least = references[best][RECALL]
    return (
        f"item vectors find an item of the same session among {CUTOFF} neighbours with recall "
        f"{found[RECALL]:.4f}, {'behind' if found[RECALL] < least else 'ahead of'} {best} "
        f"({least:.4f}); every item weighs the same"
    )
