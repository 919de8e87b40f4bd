"""Votes of the newest events' successors: against the baseline that counts the same, and stored."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_log import make_log, random_log
from safetensors.torch import load_file, save_file
from test_leaks import catalogue, random_histories, settings, trained_looking
from training_runs import parameters, write_project

from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION
from hpgr.evaluation import protocols
from hpgr.evaluation.baselines import Transitions, train_counts
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.scoring import Scorer
from hpgr.model.stored_table import pack_table
from hpgr.model.successors import EVENTS, SCALE, Additions, Successors, SuccessorTable
from hpgr.model.zoo import section_of
from hpgr.runtime import DamagedFile
from hpgr.training.additions import choose_additions
from hpgr.training.cooccurrence import drawn_events
from hpgr.training.finetune import finetune
from hpgr.training.validation import Validation

CPU = torch.device("cpu")
DECAY = 0.7


def table_of(log, *, most=10**6, decay=DECAY):
    return SuccessorTable.count(
        *drawn_events(log, seed=0), log.meta.num_items, decay=decay, most=most
    )


def dense(log, past):
    """Votes [Q, V] of the baseline, without its trace of popularity."""
    count = train_counts(log)
    scores = Transitions(log, decay=DECAY, events=EVENTS).retrieve(past)
    return scores - np.float32(1e-9) * count / count.max()


def test_votes_are_the_scores_of_the_baseline_transitions():
    log = random_log(0)
    past = protocols.next_item(log, TEST).histories(log, 200)
    query, item, votes = table_of(log).votes(past)
    found = np.zeros((len(past), log.meta.num_items))
    found[query, item] = votes
    np.testing.assert_allclose(found, dense(log, past), atol=1e-6)


def test_the_successors_with_the_greatest_shares_are_kept():
    log = random_log(0)
    whole, cut = table_of(log), table_of(log, most=3)
    for row in range(log.meta.num_items):
        every, some = (slice(*table.offsets[row : row + 2]) for table in (whole, cut))
        kept = dict(zip(cut.item[some], cut.share[some], strict=True))
        shares = dict(zip(whole.item[every], whole.share[every], strict=True))
        assert sorted(kept.values()) == sorted(shares.values())[-3:]
        assert kept.items() <= shares.items()


def test_the_score_is_the_cosine_and_the_weighted_votes(monkeypatch):
    log, past = random_log(0), random_histories([12, 0, 1, 20], seed=1)
    past = replace(past, item=past.item % 10 + FIRST_ITEM)
    newest = past.timestamp[np.maximum(past.offsets[1:] - 1, 0)]
    past = replace(past, request_time=newest + np.array([1800, 0, 1801, 10**6]))
    scorer = Scorer(trained_looking(build(settings(), catalogue(), ranking=True)), CPU, 40)
    sizes = scorer.retrieve(past).shape[1]
    user, item = drawn_events(log, seed=0)
    item = item % 10 + FIRST_ITEM
    table = SuccessorTable.count(user, item, sizes, decay=DECAY, most=100)
    weight = np.array([0.3, 0.3, 0.8, 0.8])[:, None]  # the last two ask after a pause
    query, successor, votes = table.votes(past)
    expected = scorer.retrieve(past)
    expected[query, successor] += (weight[query, 0] * np.log1p(SCALE * votes)).astype(np.float32)
    scorer.additions = Additions(successors=Successors(table, 0.3, 0.8, 1800))
    np.testing.assert_allclose(scorer.retrieve(past), expected, atol=1e-5)
    read = scorer.read(past)
    assert read.states() is None  # no index over cosines would find them
    for part in (slice(0, 3), slice(3, 40)):
        np.testing.assert_allclose(read.retrieve(part), expected[:, part], atol=1e-5)


def log_of_pairs():
    """Users who take independent pairs of items; the second of the last pair is asked for."""
    random, users, held_out = np.random.default_rng(0), [], []
    for _ in range(40):
        firsts = FIRST_ITEM + 2 * random.choice(20, 8, replace=False)
        items = [item for first in firsts for item in (int(first), int(first) + 1)]
        users.append([(item, 10**9 + 60 * n, 1) for n, item in enumerate(items)])
        held_out.append([TRAIN] * 15 + [VALIDATION])
    return make_log(users, num_items=42, held_out=held_out)


def test_the_weight_that_finds_what_always_follows_is_chosen():
    log = log_of_pairs()
    validation = Validation(log, max_history=40, num_queries=10**6, num_labelled=0, seed=0)
    model = build(settings(), Catalogue.of(log), ranking=False)
    cfg = parameters(finetune__successor_weights=(0, 100), finetune__successor_decays=(1.0, 0.1))
    chosen = choose_additions(log, cfg.finetune, validation, model, CPU)
    successors = chosen.additions.successors
    assert successors.table.decay == 0.1  # the older events vote for their own
    assert (successors.weight, successors.weight_after_pause) == (5.0, 0.0)  # 100 x temperature
    assert "NDCG@10 on validation 1.0000" in chosen.sentences[-2]


def test_a_trained_network_scores_with_its_table_after_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = log_of_pairs()
    write_project(Path(), log)
    finetune(
        parameters(
            finetune__inherit=False, finetune__steps=2, finetune__ranking_weight=0.0,
            finetune__successor_weights=(0, 100), finetune__successor_decays=(0.1,),
        )
    )  # fmt: skip
    folder = Path("artifacts/finetune")
    loaded = Scorer.load(folder)
    expected = table_of(log, decay=0.1)
    assert loaded.additions.successors.weight == 5.0
    for name in ("offsets", "item", "share"):
        np.testing.assert_array_equal(
            getattr(loaded.additions.successors.table, name), getattr(expected, name)
        )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_params"] == sum(w.numel() for w in loaded.model.state_dict().values()
                                        if w.is_floating_point())  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offsets", torch.zeros(3, dtype=torch.int64), "not that of"),
        ("item", torch.tensor([10**6, 3]), "beyond 0 to"),
        ("share", torch.tensor([0.5, float("nan")]), "no shares"),
        ("share", torch.tensor([0.5]), "does not ascend"),
        ("share", torch.tensor([1, 1]), "other types"),
        (None, None, "are missing"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, name, value, message):
    sizes = catalogue()
    model = build(settings(name="hpgr"), sizes, ranking=True)
    offsets = np.full(sizes.num_items + 1, 2)
    offsets[0] = 0
    table = SuccessorTable(offsets, np.array([2, 3]), np.array([0.5, 0.5], np.float32), 0.5)
    numbers = ("num_items", "num_actions", "num_categories", "gap_s")
    config = {
        "ranking": True,
        "model": asdict(section_of(settings(name="hpgr"))),
        "catalogue": {k: getattr(sizes, k) for k in numbers},
        "successors": {"weight": 0.1, "weight_after_pause": 0.0, "decay": 0.5},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict() | pack_table(table), tmp_path / "model.safetensors")
    assert Scorer.load(tmp_path).additions.successors.weight == 0.1
    weights = load_file(tmp_path / "model.safetensors")
    for key in [key for key in weights if key.startswith("successors.")]:
        if name is None:
            del weights[key]
        elif key == f"successors.{name}":
            weights[key] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DamagedFile, match=message):
        Scorer.load(tmp_path)
