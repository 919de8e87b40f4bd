"""Scores on the validation split, for early stopping. Never opens the test split.

Retrieval: HR@10 and NDCG@10 of the user's validation event; where items seen before are removed
(`remove_history` of `hpgr.data.log.Meta`), an event that repeats one is a miss.
Ranking: see `hpgr.training.labelled_validation` and, of shown lists, `list_validation`; baskets:
`hpgr.training.basket_validation`. Several processes share the work and get the scores of one, bit
for bit: it is cut into the same parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
import torch

from hpgr.data.histories import bounded, histories
from hpgr.data.list_log import ListLog
from hpgr.data.log import VALIDATION, EventLog
from hpgr.metrics import MISS, hit_rate, ndcg, ranks_of
from hpgr.model.interface import Network
from hpgr.model.scoring import Calibration, Scorer
from hpgr.model.successors import Additions
from hpgr.training.basket_validation import NDCG, BasketValidation
from hpgr.training.calibration import fitted
from hpgr.training.device import ALONE, Device
from hpgr.training.labelled_validation import LabelledValidation
from hpgr.training.list_validation import ListValidation

CUTOFF = 10
QUERIES_AT_A_TIME = 512
EVENTS_AT_A_TIME = 8192  # small enough that several processes find parts to share
CELLS = 1 << 22  # scores held at a time, 16 MiB in float32


class Validation:
    """A fixed, seeded sample of validation events and the scores of a model on them."""

    def __init__(
        self,
        log: EventLog,
        *,
        max_history: int,
        num_queries: int,
        num_labelled: int,
        num_baskets: int = 0,
        seed: int,
        among: Device = ALONE,
        lists: ListLog | None = None,
    ) -> None:
        """`num_queries` events are asked for the next item, `num_labelled` for their label.

        With `lists` shown items are asked for theirs in place of events; `num_baskets` sessions
        are asked for all of their items. All processes of `among` call every method together.
        """
        self.log, self.max_history, self.among = log, max_history, among
        self.num_queries, self.seed = num_queries, seed
        self.labelled: LabelledValidation | ListValidation | None = None
        if num_labelled and lists is not None:
            self.labelled = ListValidation(
                log, lists, max_history=max_history, num_items=num_labelled, seed=seed, among=among
            )
        elif num_labelled:
            self.labelled = LabelledValidation(
                log, max_history=max_history, num_events=num_labelled, seed=seed, among=among
            )
        self.baskets: BasketValidation | None = None
        if num_baskets:
            self.baskets = BasketValidation(
                log, max_history=max_history, num_baskets=num_baskets, seed=seed, among=among
            )
        self._ask(np.flatnonzero(np.asarray(log.split) == VALIDATION))

    def _ask(self, rows: np.ndarray) -> None:
        """Take a sample of `rows` of the log as the queries."""
        user = self.log.user_of_event()
        rows = rows[rows > self.log.user_offsets[user[rows]]]  # an event without history is none
        if len(rows) > self.num_queries:
            random = np.random.default_rng(self.seed)
            rows = np.sort(random.choice(rows, self.num_queries, replace=False))
        self.rows, self.user = rows, user[rows]
        self.start = self.log.user_offsets[self.user]

    def __call__(self, model: Network, device: torch.device) -> dict[str, float]:
        """Return named scores of `model`; an empty validation split gives none.

        `validation_heads` is the mean of `validation_ranking` and NDCG@10: the order of next items
        gains long after pCTR is as good as it gets.
        """
        if not len(self.rows):
            return {}
        scorer = Scorer(model, device, self.max_history)
        scores = self._retrieval(scorer)
        for others in (self.labelled, self.baskets):
            scores |= others(scorer) if others else {}
        if (ranking := scores.get("validation_ranking")) is not None:
            scores["validation_heads"] = (ranking + scores[f"validation_ndcg@{CUTOFF}"]) / 2
        return scores

    def calibration(self, model: Network, device: torch.device) -> Calibration:
        """Fit the calibration of `model`; without labelled events it is none."""
        found = self.labelled
        if found is None or not len(found.label):
            return Calibration()
        return fitted(found.scores(Scorer(model, device, self.max_history)), found.label)

    def compare(
        self,
        model: Network,
        device: torch.device,
        ways: Sequence[Additions],
        pauses: Sequence[Additions],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score ways of adding to the cosines of `model`.

        Args:
            model: the network.
            device: where it computes.
            ways: additions to compare.
            pauses: the same for whole baskets.

        Returns:
            NDCG@10 of each way, float64 [ways], for events within a session and for those after a
            pause: samples of their own, without events all 0. Where baskets are asked, the second
            is that of whole baskets.
        """
        log, gap_s = self.log, self.log.meta.gap_s
        rows = np.flatnonzero(np.asarray(log.split) == VALIDATION)
        pause = np.asarray(log.timestamp[rows]) - log.timestamp[rows - 1] > gap_s
        found = []
        scorer = Scorer(model, device, self.max_history)
        for asked, chosen in ((copy(self), ~pause), (copy(self), pause)):
            asked._ask(rows[chosen])
            scores = np.zeros(len(ways))
            if len(asked.rows):
                scores = ndcg(asked._ranks(scorer, ways), CUTOFF).mean(axis=1)
            found.append(scores)
        if self.baskets:
            found[1] = self.baskets.means(scorer, pauses)[:, NDCG]
        return found[0], found[1]

    def _retrieval(self, scorer: Scorer) -> dict[str, float]:
        (ranks_Q,) = self._ranks(scorer, [Additions()])
        return {
            f"validation_hr@{CUTOFF}": float(hit_rate(ranks_Q, CUTOFF).mean()),
            f"validation_ndcg@{CUTOFF}": float(ndcg(ranks_Q, CUTOFF).mean()),
        }

    def _ranks(self, scorer: Scorer, choices: Sequence[Additions]) -> np.ndarray:
        """Ranks of the queries' items with each of `choices`, int64 [choices, Q]."""
        log = self.log
        ranks = np.zeros((len(choices), len(self.rows)), dtype=np.int64)
        most = max(1, min(QUERIES_AT_A_TIME, CELLS // log.meta.num_items))
        for part in self.among.own(self._parts(most)):
            rows, users = self.rows[part], self.user[part]
            past = histories(log, users, rows, log.timestamp[rows], self.max_history)
            plain = scorer.retrieve(past)
            target = log.item[rows]
            repeated = np.zeros(len(rows), dtype=bool)
            if log.meta.remove_history:
                # All earlier items of the user go, also those too old for the window.
                for query, (first, row) in enumerate(zip(self.start[part], rows, strict=True)):
                    before = log.item[first:row]
                    repeated[query] = (before == target[query]).any()
                    plain[query, before] = -np.inf
            for own, choice in zip(ranks, choices, strict=True):
                scores = plain if choice.idle else choice.add(plain.copy(), past)
                own[part] = np.where(repeated, MISS, ranks_of(scores, target, None))
        return self.among.summed(ranks)

    def _parts(self, queries: int) -> Iterator[slice]:
        """Slices of at most `queries` queries, bounded by the events that the model reads."""
        read = np.minimum(self.rows - self.start, self.max_history)
        return bounded(read, queries=queries, most=EVENTS_AT_A_TIME)
