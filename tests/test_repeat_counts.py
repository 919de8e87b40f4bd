"""Counts of what was taken before, in the scores: against loops, and chosen on validation."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluation_log import make_log
from test_leaks import catalogue, random_histories, settings, trained_looking
from training_runs import parameters

import hpgr.model.scoring
from hpgr.data.histories import Histories
from hpgr.data.log import FIRST_ITEM, TRAIN, VALIDATION
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.repeat_counts import Repeats, prefixes, session_counts
from hpgr.model.scoring import Scorer
from hpgr.model.successors import Additions
from hpgr.training.additions import choose_additions
from hpgr.training.validation import Validation

CPU = torch.device("cpu")
SOME = Repeats(0.3, 0.5, weight_after_pause=0.7, decay_after_pause=0.9, gap_s=1800)


def counted(past, decay):
    """By query and item, in loops."""
    found = defaultdict(float)
    for query in range(len(past)):
        rows = range(past.offsets[query], past.offsets[query + 1])
        newest = max((past.session[row] for row in rows if past.item[row] >= FIRST_ITEM), default=0)
        for item, session in {(past.item[row], past.session[row]) for row in rows}:
            if item >= FIRST_ITEM:
                found[query, item] += decay ** int(newest - session)
    return found


@pytest.fixture
def past():
    made = random_histories([12, 0, 1, 20, 5], seed=1)
    return Histories(**{**vars(made), "item": made.item % 5 + 1})  # many repeats, some reserved


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_counts_are_those_of_a_loop(past, decay):
    query, item, count = session_counts(past, decay)
    expected = counted(past, decay)
    assert list(zip(query, item, strict=True)) == sorted(expected)
    assert count == pytest.approx([expected[pair] for pair in sorted(expected)])


def test_a_prefix_ends_with_its_row(past):
    rows = np.array([0, 4, 12, 13, 30])
    cut = prefixes(past, rows)
    first = past.offsets[np.searchsorted(past.offsets, rows, side="right") - 1]
    assert cut.length.tolist() == (rows + 1 - first).tolist()
    assert cut.item[cut.offsets[1:] - 1].tolist() == past.item[rows].tolist()


@pytest.fixture
def scorer(monkeypatch):
    monkeypatch.setattr(hpgr.model.scoring, "TOKENS_AT_A_TIME", 15)
    model = build(settings(), catalogue(), ranking=True)
    return Scorer(trained_looking(model), CPU, 40)


def expected_scores(plain, past):
    """With the counts in loops, of requests in a session and after a pause."""
    for query, (start, end) in enumerate(pairwise(past.offsets)):
        if start < end:
            pause = past.request_time[query] - past.timestamp[end - 1] > SOME.gap_s
            weight, decay = SOME[2:4] if pause else SOME[:2]
            for (_, item), count in counted(past.take(slice(query, query + 1)), decay).items():
                plain[query, item] += weight * np.log1p(count)
    return plain


def test_the_score_is_the_cosine_and_the_weighted_count(scorer, past):
    newest = past.timestamp[np.maximum(past.offsets[1:] - 1, 0)]
    past = replace(past, request_time=newest + np.array([1800, 0, 1801, 5, 10**6]))
    expected = expected_scores(scorer.retrieve(past), past)
    scorer.additions = Additions(SOME)
    np.testing.assert_allclose(scorer.retrieve(past), expected, atol=1e-5)
    read = scorer.read(past)
    for part in (slice(None), slice(0, 3), slice(3, 40)):
        np.testing.assert_allclose(read.retrieve(part), expected[:, part], atol=1e-5)


def test_a_row_inside_counts_what_came_up_to_it(scorer):
    histories, rows = random_histories([9, 6], seed=2), np.array([3, 8, 11])
    time = histories.timestamp[rows] + np.array([5, 10**6, 1800])
    past = prefixes(histories, rows, time)
    expected = expected_scores(scorer.retrieve_rows(histories, rows), past)
    scorer.additions = Additions(SOME)
    np.testing.assert_allclose(scorer.retrieve_rows(histories, rows, time), expected, atol=1e-5)


def log_of_habits(*, remove_history):
    """Users who take the same two items in every session, another one between; the last is held."""
    random, users, held_out = np.random.default_rng(0), [], []
    for _ in range(30):
        first, second, *others = (random.permutation(40) + FIRST_ITEM).tolist()
        items = [item for other in others[:6] for item in (first, other, second)]
        users.append([(item, 10**9 + 86_400 * (n // 3) + n % 3, 1) for n, item in enumerate(items)])
        held_out.append([TRAIN] * 15 + [VALIDATION] * 3)
    log = make_log(users, num_items=42, held_out=held_out)
    return replace(log, meta=replace(log.meta, remove_history=remove_history))


CHOICES = [(0.0, 1.0), (5.0, 1.0)]


def scores():
    log = log_of_habits(remove_history=False)
    validation = Validation(log, max_history=40, num_queries=10**6, num_labelled=0, seed=0)
    model = build(settings(), Catalogue.of(log), ranking=False)
    ways = [Additions(Repeats(*choice, *choice, log.meta.gap_s)) for choice in CHOICES]
    return validation.compare(model, CPU, ways, ways)


def test_after_a_pause_the_item_that_is_always_taken_is_found():
    """It is one of two: no other is above both."""
    _, after = scores()
    assert after[1] > max(after[0], 1 / np.log2(3) - 1e-9)


def test_in_a_session_validation_sees_the_other_two():
    """One of them is new, the other is in every earlier session: half of them are found."""
    within, _ = scores()
    assert 0.5 / np.log2(3) - 1e-9 < within[1] < 0.6


def test_nothing_is_weighed_where_what_was_seen_is_removed():
    log = log_of_habits(remove_history=True)
    validation = Validation(log, max_history=40, num_queries=10**6, num_labelled=0, seed=0)
    model = build(settings(), Catalogue.of(log), ranking=False)
    cfg = parameters(finetune__successor_weights=(0,))
    chosen = choose_additions(log, cfg.finetune, validation, model, CPU)
    assert (chosen.additions.idle, chosen.sentences) == (True, ())
