"""Questions of many threads: answered together, each as if it were alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_recommender import ACTIONS, ITEMS, SERVING, FakeScorer, request

from hpgr.serving.recommender import Recommender


class Held(FakeScorer):
    """Waits in its first reading until it is let go; cannot read an event of item 5."""

    def __init__(self):
        super().__init__()
        self.begun, self.go, self.sizes = threading.Event(), threading.Event(), []

    def read(self, histories):
        self.sizes.append(len(histories))
        self.begun.set()
        assert self.go.wait(60)
        if (histories.item == 5).any():
            raise RuntimeError("no reading of d")
        return super().read(histories)


def asked_at_once(questions, **options):
    """Answers and sizes of the passes, of questions that all wait while the first is read."""
    scorer = Held()
    service = Recommender(scorer, ITEMS, ACTIONS, SERVING)
    with ThreadPoolExecutor(len(questions) + 1) as pool:
        first = pool.submit(service.recommend, [request(("a", 1))], k=2)
        assert scorer.begun.wait(60)
        others = [pool.submit(service.recommend, [q], **{"k": 2, **options}) for q in questions]
        while len(service.finder._waiting) < len(questions):
            pass
        scorer.go.set()
        first.result()
    return others, scorer.sizes


def test_those_who_wait_share_a_pass_and_get_their_own_answers():
    questions = [request((name, 1 + n)) for n, name in enumerate("abcabcab")]
    alone = Recommender(FakeScorer(), ITEMS, ACTIONS, SERVING)
    found, sizes = asked_at_once(questions)
    assert sizes == [1, 8]
    for question, answer in zip(questions, found, strict=True):
        assert answer.result() == alone.recommend([question], k=2)


def test_a_pass_holds_what_memory_allows(monkeypatch):
    monkeypatch.setattr("hpgr.serving.best_items.CELLS", 18)  # three queries of six scores
    found, sizes = asked_at_once([request(("a", 1))] * 8)
    assert sizes == [1, 3, 3, 2] and all(answer.result() for answer in found)


def test_a_question_that_cannot_be_answered_fails_alone():
    found, sizes = asked_at_once([request(("a", 1)), request(("d", 1)), request(("b", 1))])
    failed = [answer.exception() is not None for answer in found]
    assert failed == [False, True, False]
    assert sizes[:2] == [1, 3]
    with pytest.raises(RuntimeError, match="no reading of d"):
        found[1].result()
