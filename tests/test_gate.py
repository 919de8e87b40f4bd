"""The gate's truth table: every rule alone decides, and the verdict tells why."""

import math

import pytest

from hpgr.config import Gate
from hpgr.data.trained_events import Overlap
from hpgr.evaluation.contest import Change, Contest
from hpgr.registry.gate import Past, decide
from hpgr.runtime import UserError

RULES = Gate(
    metric="ndcg@10",
    margin=0.01,
    significance=0.05,
    guards={"hr@50": 0.02, "log_loss": 0.05},
    max_slice_fall=0.1,
    min_slice_queries=100,
    promotes=True,
)


def change(champion, challenger, p=0.001, queries=1000):
    return Change(champion, challenger, 0.0, 0.0, p, queries)


def contest(*, ndcg=(0.20, 0.22), p=0.001, hr=(0.50, 0.50), loss=(0.60, 0.60), slices=None):
    metrics = {"ndcg@10": change(*ndcg, p), "hr@50": change(*hr), "log_loss": change(*loss)}
    return Contest(("R1",), metrics, slices or {})


BIG_FALL = {"item: tail": change(0.10, 0.08, queries=100)}
CASES = [
    # what happens, contest, rules changed, accepted, the rule that refuses
    ("better everywhere", contest(), {}, True, None),
    ("better by too little", contest(ndcg=(0.200, 0.201)), {}, False, "ndcg@10 gains:"),
    ("exactly the margin", contest(ndcg=(0.25, 0.5)), {"margin": 1.0}, False, "gains:"),
    ("a small gain, margin zero", contest(ndcg=(0.2, 0.201)), {"margin": 0.0}, True, None),
    ("the same", contest(ndcg=(0.2, 0.2), p=1.0), {"margin": 0.0}, False, "ndcg@10 gains:"),
    ("the same, any p counts", contest(ndcg=(0.2, 0.2), p=1.0),
     {"margin": 0.0, "significance": 1.0}, False, "ndcg@10 gains:"),
    ("worse", contest(ndcg=(0.2, 0.1)), {}, False, "ndcg@10 gains:"),
    ("worse beyond chance", contest(ndcg=(0.2, 0.1)), {}, False, "gains beyond chance"),
    ("better by chance", contest(p=0.2), {}, False, "beyond chance"),
    ("p at the limit", contest(p=0.05), {}, False, "beyond chance"),
    ("better by chance, any p counts", contest(p=0.9), {"significance": 1.0}, True, None),
    ("a guard falls within its limit", contest(hr=(0.50, 0.491)), {}, True, None),
    ("a guard falls beyond", contest(hr=(0.50, 0.48)), {}, False, "hr@50 holds"),
    ("a guard that counts downwards rises", contest(loss=(0.6, 0.7)), {}, False, "log_loss holds"),
    ("a guard that counts downwards falls", contest(loss=(0.6, 0.3)), {}, True, None),
    ("no guards", contest(hr=(0.5, 0.1)), {"guards": {}}, True, None),
    ("a guard is no number", contest(hr=(0.5, math.nan)), {}, False, "hr@50 holds"),
    ("a guard that counts downwards is no number", contest(loss=(0.6, math.nan)), {}, False,
     "log_loss holds"),
    ("the deciding metric is no number", contest(ndcg=(0.2, math.nan)), {}, False, "gains:"),
    ("a slice falls", contest(slices=BIG_FALL), {}, False, "holds for item: tail"),
    ("a slice is no number", contest(slices={"item: tail": change(0.1, math.nan)}), {}, False,
     "holds for item: tail"),
    ("a small slice falls", contest(slices=BIG_FALL), {"min_slice_queries": 101}, True, None),
    ("a slice falls and may", contest(slices=BIG_FALL), {"max_slice_fall": 0.25}, True, None),
    ("from nothing to something", contest(ndcg=(0.0, 0.1)), {}, True, None),
    ("nothing at all", contest(ndcg=(0.0, 0.0), p=1.0), {}, False, "ndcg@10 gains:"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "changed", "accepted", "refusing"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_the_truth_table(figures, changed, accepted, refusing):
    verdict = decide(figures, RULES.model_copy(update=changed), Past())
    assert verdict.accepted is accepted
    assert verdict.word == ("accepted" if accepted else "refused")
    if refusing is not None:
        assert any(refusing in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("past", "refusing"),
    [
        (Past(), None),
        (Past({1: Overlap(0, 100), 2: Overlap(0, 100)}), None),
        (Past({1: Overlap(3, 100), 2: Overlap(0, 100)}), "version 1 has not trained on today's"),
        (Past({1: Overlap(0, 100), 2: Overlap(1, 100)}), "version 2 has not trained on today's"),
        (Past(rolled_back="yesterday by me: slow"), "was not rolled back: rolled back: yesterday"),
    ],
)
def test_what_no_figure_shows_refuses_whatever_the_figures_are(past, refusing):
    verdict = decide(contest(), RULES, past)
    assert verdict.accepted is (refusing is None)
    assert refusing is None or [refusing in reason for reason in verdict.reasons] == [True]


def test_every_broken_rule_is_reported_not_the_first_alone():
    figures = contest(ndcg=(0.2, 0.1), p=0.5, hr=(0.5, 0.1), loss=(0.6, 1.0), slices=BIG_FALL)
    assert len(decide(figures, RULES, Past()).reasons) == 5


def test_an_accepted_verdict_tells_the_gain():
    (reason,) = decide(contest(), RULES, Past()).reasons
    assert reason == "ndcg@10 gains: 0.2000 to 0.2200 (+10.0%), expected more than +1.0%"


@pytest.mark.parametrize("changed", [{"metric": "ndcg@7"}, {"guards": {"auc": 0.1}}])
def test_a_metric_that_is_not_there_is_the_users_mistake(changed):
    with pytest.raises(UserError, match=r"there are ndcg@10, hr@50, log_loss"):
        decide(contest(), RULES.model_copy(update=changed), Past())


def test_a_figure_without_resamples_can_guard():
    figures = contest()
    figures.metrics["coverage@10"] = change(0.5, 0.3, p=math.nan)
    verdict = decide(figures, RULES.model_copy(update={"guards": {"coverage@10": 0.2}}), Past())
    assert verdict.reasons == [
        "coverage@10 holds: 0.5000 to 0.3000 (-40.0%), expected at most 20.0% lower"
    ]
