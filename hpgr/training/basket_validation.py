"""Recall and NDCG of whole validation baskets, for early stopping. Never opens the test split.

Asked as next basket (B1) is: by the second in which a session begins, with what the user had before
among the answers. Early stopping leaves out the weighted count of it, which is chosen by the same
baskets when training is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpgr.basket_metrics import basket_metrics
from hpgr.data.baskets import next_basket
from hpgr.data.histories import bounded
from hpgr.data.log import VALIDATION, EventLog
from hpgr.model.scoring import Scorer
from hpgr.model.successors import Additions
from hpgr.training.device import ALONE, Device

CUTOFF = 10
NAMES = (f"recall@{CUTOFF}", f"ndcg@{CUTOFF}")
NDCG = 1  # its place among them
BASKETS_AT_A_TIME = 512
EVENTS_AT_A_TIME = 8192  # small enough that several processes find parts to share
CELLS = 1 << 22  # scores held at a time, 16 MiB in float32


class BasketValidation:
    """A fixed, seeded sample of the sessions that begin in validation: `queries`."""

    def __init__(
        self,
        log: EventLog,
        *,
        max_history: int,
        num_baskets: int,
        seed: int,
        among: Device = ALONE,
    ) -> None:
        """`num_baskets` bounds the sample."""
        self.log, self.max_history, self.among = log, max_history, among
        self.queries = next_basket(log, VALIDATION)
        if len(self.queries) > num_baskets:
            random = np.random.default_rng(seed)
            drawn = random.choice(len(self.queries), num_baskets, replace=False)
            self.queries = self.queries.take(np.sort(drawn))

    def __call__(self, scorer: Scorer) -> dict[str, float]:
        """Return the means of recall and NDCG; without a basket none."""
        if not len(self.queries):
            return {}
        (means,) = self.means(scorer, [Additions()])
        return {f"validation_basket_{n}": float(m) for n, m in zip(NAMES, means, strict=True)}

    def means(self, scorer: Scorer, ways: Sequence[Additions]) -> np.ndarray:
        """Return the means of `NAMES` with each way of adding to the cosines, float64 [ways, 2]."""
        gains = np.zeros((len(ways), len(NAMES), len(self.queries)))
        past = self.queries.end - self.log.user_offsets[self.queries.user]
        most = max(1, min(BASKETS_AT_A_TIME, CELLS // self.log.meta.num_items))
        read = np.minimum(past, self.max_history)
        for part in self.among.own(bounded(read, queries=most, most=EVENTS_AT_A_TIME)):
            asked = self.queries.take(part)
            histories = asked.histories(self.log, self.max_history)
            plain = scorer.retrieve(histories)
            for own, way in zip(gains, ways, strict=True):
                scores = plain if way.idle else way.add(plain.copy(), histories)
                found = basket_metrics(scores, asked.offsets, asked.item, [CUTOFF])
                own[:, part] = [found[name] for name in NAMES]
        means: np.ndarray = self.among.summed(gains).mean(axis=2)
        return means
