"""Early stopping by whole baskets, against each basket by itself."""

import csv
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_log import log_of_baskets, random_log
from test_next_basket import Levels, by_places, shown
from training_runs import parameters, write_project

from hpgr.data.baskets import next_basket
from hpgr.data.log import FIRST_ITEM, VALIDATION
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.repeat_counts import Repeats
from hpgr.model.scoring import Scorer
from hpgr.model.successors import Additions
from hpgr.runtime import UserError
from hpgr.training import basket_validation
from hpgr.training.basket_validation import BasketValidation
from hpgr.training.finetune import finetune
from hpgr.training.validation import Validation

MONITOR = "validation_basket_ndcg@10"
ALL = {"max_history": 50, "num_baskets": 10**6, "seed": 0}


def gains(log, model):
    """Mean recall and NDCG@10 over the validation baskets, which see all that came before them."""
    queries = next_basket(log, VALIDATION)
    scores = model.retrieve(queries.histories(log, log.meta.num_events))
    items = range(FIRST_ITEM, log.meta.num_items)
    rows = zip(scores, shown(log, queries), strict=True)
    return np.mean([by_places(row, items, set(hidden), 10) for row, (_, hidden) in rows], axis=0)


@pytest.mark.parametrize("remove", [True, False])
def test_every_basket_is_asked_with_what_the_user_had_among_the_answers(remove, monkeypatch):
    monkeypatch.setattr(basket_validation, "BASKETS_AT_A_TIME", 3)
    log = random_log(5, split="global-time")
    log = replace(log, meta=replace(log.meta, remove_history=remove))
    model = Levels(log.meta.num_items)
    found = BasketValidation(log, **ALL)(model)
    assert list(found) == ["validation_basket_recall@10", MONITOR]
    assert list(found.values()) == pytest.approx(gains(log, model))


class Half:
    """One of two processes, before their figures are summed."""

    def __init__(self, rank):
        self.rank = rank

    def own(self, parts):
        return islice(parts, self.rank, None, 2)

    def summed(self, values):
        return values


def test_two_processes_share_the_baskets(monkeypatch):
    monkeypatch.setattr(basket_validation, "BASKETS_AT_A_TIME", 3)
    log = random_log(5, split="global-time")
    model = Levels(log.meta.num_items)
    halves = [BasketValidation(log, **ALL, among=Half(rank))(model)[MONITOR] for rank in (0, 1)]
    assert min(halves) > 0
    assert sum(halves) == pytest.approx(gains(log, model)[1])


def test_a_sample_is_of_whole_baskets():
    log = log_of_baskets()
    every = next_basket(log, VALIDATION)
    some = BasketValidation(log, max_history=50, num_baskets=7, seed=0).queries
    assert len(some) == 7 < len(every)
    whole = dict(zip(every.user.tolist(), shown(log, every), strict=True))  # each user has one
    assert [whole[user] for user in some.user.tolist()] == shown(log, some)


def test_the_weights_that_find_baskets_best_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = log_of_baskets()
    write_project(Path(), log)
    cfg = parameters(
        finetune__monitor=MONITOR, finetune__inherit=False, finetune__steps=6,
        finetune__validate_steps=3, finetune__learning_rate=0.03, model__max_history=50,
        finetune__validation_queries=10**6,
    )  # fmt: skip
    finetune(cfg)
    rows = csv.DictReader(Path("artifacts/finetune/curves.csv").read_text().splitlines())
    curve = {float(row["step"]): float(row[MONITOR]) for row in rows}
    config = json.loads(Path("artifacts/finetune/config.json").read_text())
    best = max(curve, key=lambda step: curve[step])
    assert (config["training"]["monitor"], config["training"]["best_step"]) == (MONITOR, best)
    scorer = Scorer.load(Path("artifacts/finetune"))
    scorer.additions = Additions()
    assert curve[best] == pytest.approx(gains(log, scorer)[1], abs=1e-5)
    assert len(set(curve.values())) > 1


def test_what_was_taken_before_counts_as_finds_baskets_best():
    """After a pause; the scores of each choice are those of each basket by itself."""
    log = log_of_baskets()
    log = replace(log, meta=replace(log.meta, remove_history=False, gap_s=1800))
    cfg = parameters(model__max_history=50)
    model = build(cfg.model, Catalogue.of(log), ranking=False)
    choices = [(0.0, 1.0), (0.5, 1.0), (0.5, 0.5)]
    validation = Validation(
        log, num_queries=9, num_labelled=0, num_baskets=10**6, max_history=50, seed=0
    )
    ways = [Additions(Repeats(0.0, 1.0, *choice, 1800)) for choice in choices]
    found = validation.compare(model, torch.device("cpu"), ways, ways)
    scorer, expected = Scorer(model, torch.device("cpu"), 50), []
    for way in ways:
        scorer.additions = way
        expected.append(gains(log, scorer)[1])
    assert found[1] == pytest.approx(expected, abs=1e-6)
    assert len({*expected}) == 3


def test_a_log_without_a_validation_basket_cannot_stop_by_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = log_of_baskets()
    write_project(Path(), replace(log, session=np.zeros_like(log.session)))
    with pytest.raises(UserError, match=r"no session that begins in validation.*validation_ndcg"):
        finetune(parameters(finetune__monitor=MONITOR, finetune__inherit=False))
