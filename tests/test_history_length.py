"""Long histories: of which queries, how much is read, and what is said of it."""

from itertools import pairwise

import numpy as np
from evaluation_log import random_log
from test_evaluate import CONFIG, Knowing

from benchmarks.history_length import figures_of, judged, long_ones
from hpgr.data.log import TEST
from hpgr.evaluation import protocols

LOG = random_log(0, num_items=60, split="global-time")
QUERIES, CANDIDATES = protocols.next_item(LOG, TEST), protocols.labelled(LOG, TEST)
SHORT, LONG = 3, 200


def test_a_long_query_is_one_that_sees_enough_events():
    marked = long_ones(LOG, QUERIES, 10)
    for user, end, long in zip(QUERIES.user, QUERIES.end, marked, strict=True):
        start = LOG.user_offsets[user]
        assert long == (len(LOG.item[start:end]) >= 10)
    assert 0 < marked.sum() < len(marked)


class Forgetful(Knowing):
    """Knows all where it reads more than SHORT events, and nothing else."""

    def reads_enough(self, histories):
        return np.array([high - low > SHORT for low, high in pairwise(histories.offsets)])

    def retrieve(self, histories):
        scores = super().retrieve(histories)
        return np.where(~self.reads_enough(histories)[:, None] & np.isfinite(scores), 0, scores)

    def rank(self, histories, offsets, candidates):
        enough = np.repeat(self.reads_enough(histories), np.diff(offsets))
        return np.where(enough, super().rank(histories, offsets, candidates), 0.5)


def test_a_network_that_needs_a_long_history_gains_by_it():
    queries = QUERIES.take(long_ones(LOG, QUERIES, SHORT + 1))
    lengths = (SHORT, LONG)
    tables = judged(Forgetful(LOG), LOG, queries, CANDIDATES, CONFIG.evaluate, lengths)
    found = figures_of(tables, lengths)
    assert found[str(LONG)].keys() == {"values"}
    short, long = (found[str(length)]["values"] for length in lengths)
    assert short["hr@10"] < long["hr@10"]
    assert short["auc"] == 0.5 < long["auc"]
    gains = found[str(SHORT)]["gains_of_longest"]
    assert gains.keys() == {"ndcg@10", "hr@10", "auc", "gauc"}
    for metric, gain in gains.items():
        np.testing.assert_allclose(gain["value"], long[metric] - short[metric])
        assert gain["low"] <= gain["value"] <= gain["high"]
