"""The measure of item vectors: planted sessions, brute force, and what it must not touch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_log import make_log, random_log
from safetensors.torch import load_file
from training_runs import last_row, log_with_categories, parameters, write_project

from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, VALIDATION
from hpgr.training import item_probe
from hpgr.training.item_probe import MRR, RECALL, SessionProbe, verdict
from hpgr.training.pretrain import pretrain

GROUPS, MEMBERS = 45, 2


def planted(groups=GROUPS, members=MEMBERS):
    """Each user reads one group of items in one session; frequent groups have many users."""
    random = np.random.default_rng(0)
    users = []
    for group in range(groups):
        for _ in range(3 + group):
            members_twice = random.permutation(np.arange(2 * members) % members)
            items = FIRST_ITEM + group * members + members_twice
            users.append([(int(item), 60 * place, 1) for place, item in enumerate(items)])
    return make_log(users, num_items=FIRST_ITEM + groups * members)


def group_vectors():
    group = (torch.arange(GROUPS * MEMBERS)) // MEMBERS
    one_hot = torch.nn.functional.one_hot(group, GROUPS).float()
    return torch.cat([torch.zeros(FIRST_ITEM, GROUPS), one_hot])


def with_sessions(log, seed=0):
    """The same log with sessions that interleave."""
    session = np.random.default_rng(seed).integers(0, 3, len(log.item)).astype(np.int32)
    return replace(log, session=session)


def test_vectors_that_equal_the_planted_groups_find_everything():
    found = SessionProbe(planted(), seed=0)(group_vectors())
    assert found == {RECALL: pytest.approx(1), MRR: pytest.approx(1)}


def test_popularity_and_chance_find_what_chance_finds():
    log = planted()
    references = SessionProbe(log, seed=0).references(group_vectors(), seed=0)
    chance = item_probe.CUTOFF / (GROUPS * MEMBERS - 1)
    assert references["ppmi_svd"][RECALL] == pytest.approx(1)
    for name in ("popularity", "random"):
        assert references[name][RECALL] == pytest.approx(chance, abs=0.06)
    assert references["like_popularity"][RECALL] < 0.8  # a group's items are equally frequent


@pytest.mark.parametrize("cut", [1 << 28, 6000])
def test_scores_are_those_of_counting_one_by_one(monkeypatch, cut):
    monkeypatch.setattr(item_probe, "CELLS", cut)
    log = with_sessions(random_log(1, num_users=80))
    vectors = torch.randn(log.meta.num_items, 5, generator=torch.Generator().manual_seed(3))
    probe = SessionProbe(log, seed=0)
    trained = np.unique(log.item[log.split == TRAIN])
    centred = (vectors - vectors[trained].mean(0)).numpy()
    hits, reciprocals = {}, {}
    for query, target, weight in zip(probe.query, probe.target, probe.weight, strict=True):

        def cosine(a, b):
            return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

        likeness = {i: cosine(centred[query], centred[i]) for i in trained if i != query}
        rank = 1 + sum(v > likeness[target] for v in likeness.values())
        hits.setdefault(target, []).append((weight, rank <= item_probe.CUTOFF))
        reciprocals.setdefault(target, []).append((weight, 1 / rank))

    def macro(by_item):
        means = [np.average([v for _, v in rows], weights=[w for w, _ in rows])
                 for rows in by_item.values()]  # fmt: skip
        return float(np.mean(means))

    assert probe(vectors) == {
        RECALL: pytest.approx(macro(hits)),
        MRR: pytest.approx(macro(reciprocals)),
    }


def test_pairs_share_a_session_and_every_validation_event_weighs_as_much_as_its_item_allows():
    log = with_sessions(random_log(2, num_users=80))
    probe = SessionProbe(log, seed=0)
    user = log.user_of_event()
    allowed, held = set(), {}
    for row in np.flatnonzero(log.split == VALIDATION):
        same = (user == user[row]) & (log.session == log.session[row]) & (log.split != TEST)
        company = {int(i) for i in log.item[same] if i != log.item[row]}
        allowed |= {(query, int(log.item[row])) for query in company}
        if company:
            held.setdefault(int(log.item[row]), []).append(row)
    assert set(zip(probe.query.tolist(), probe.target.tolist(), strict=True)) <= allowed
    weights = np.bincount(probe.target, weights=probe.weight)
    assert weights[weights > 0] == pytest.approx(1 / np.count_nonzero(weights))
    assert set(np.flatnonzero(weights)) <= held.keys()


def test_the_test_split_changes_nothing():
    log = with_sessions(random_log(3))
    vectors = torch.randn(log.meta.num_items, 5)
    item = log.item.copy()
    item[log.split == TEST] = FIRST_ITEM
    changed = replace(log, item=item)
    assert SessionProbe(log, seed=0)(vectors) == SessionProbe(changed, seed=0)(vectors)


def test_a_log_without_company_has_no_measure():
    users = [[(FIRST_ITEM + n, n * 10_000, 1) for n in range(4)]] * 3
    probe = SessionProbe(make_log(users), seed=0)
    assert probe(torch.randn(6, 2)) == {}
    assert probe.references(torch.randn(6, 2), seed=0)["random"] == {}
    assert "not measured" in verdict({}, {})


def test_the_verdict_names_the_best_of_what_no_network_made():
    beside = {"ppmi_svd": {RECALL: 0.3, MRR: 0.1}, "random": {RECALL: 0.01, MRR: 0.0}}
    assert "0.2000, behind ppmi_svd (0.3000)" in verdict({RECALL: 0.2, MRR: 0.1}, beside)
    assert "0.4000, ahead of ppmi_svd (0.3000)" in verdict({RECALL: 0.4, MRR: 0.1}, beside)


@pytest.fixture
def stage_one(tmp_path, monkeypatch, capsys):
    """Weights, metrics, curves and the log of a short stage 1 on a log."""

    def run(name, log, **changes):
        folder = tmp_path / name
        write_project(folder, log)
        monkeypatch.chdir(folder)
        torch.set_num_threads(1)
        steps = {"pretrain__steps": 4, "pretrain__validate_steps": 2, "pretrain__max_minutes": None}
        pretrain(parameters(**(steps | changes)))
        out = Path("artifacts/pretrain")
        metrics = json.loads((out / "metrics.json").read_text())
        return load_file(out / "model.safetensors"), metrics, capsys.readouterr().out

    return run


def test_stage_one_reports_the_measure_beside_what_no_network_made(stage_one):
    _, metrics, said = stage_one("run", log_with_categories())
    row = last_row("pretrain")
    assert metrics[RECALL] == pytest.approx(row[RECALL], abs=1e-6) and row[MRR] > 0
    for name in ("ppmi_svd", "popularity", "like_popularity", "random"):
        assert 0 <= metrics[f"{name}.{RECALL}"] <= 1
    assert f"of the same session among {item_probe.CUTOFF} neighbours" in said


def test_the_measure_moves_no_weight(stage_one):
    log = log_with_categories()
    item = log.item.copy()
    held = log.split == VALIDATION
    item[held] = np.roll(item[held], 1)
    one, found, _ = stage_one("one", log)
    two, changed, _ = stage_one("two", replace(log, item=item))
    assert found[RECALL] != changed[RECALL]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_stage_one_starts_at_the_closed_form_unless_its_length_is_zero(stage_one):
    log = planted(groups=15, members=6)  # fewer groups than dimensions
    one_step = {
        "pretrain__steps": 1,
        "pretrain__validate_steps": 1,
        "pretrain__learning_rate": 1e-9,
    }
    _, start, _ = stage_one("start", log, **one_step)
    _, fresh, _ = stage_one("fresh", log, pretrain__start_length=0, **one_step)
    assert start[RECALL] == pytest.approx(1) == start[f"ppmi_svd.{RECALL}"]
    assert fresh[RECALL] < 0.6
