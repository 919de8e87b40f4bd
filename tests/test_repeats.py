"""Logs that repeat: one rule for items seen before, wherever a model is judged or served."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

import numpy as np
import own_run
import pytest
import torch
from evaluation_log import make_log, random_log
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_log import PARAMS

from hpgr.config import ConfigError, resolve
from hpgr.data import histories, repeats, sessionize
from hpgr.data.log import FIRST_ITEM, VALIDATION
from hpgr.training import validation

K = 10


@dataclass(frozen=True)
class Judged:
    """A model by one rule: what was printed, the rule, its answers, metrics and report."""

    message: str
    removes: bool
    answers: list[list[str]]
    metrics: dict
    page: str


def evaluation(**changes):
    return resolve({**PARAMS, "evaluate": {**PARAMS["evaluate"], **changes}}).evaluate


users_of_items = st.lists(
    st.lists(st.integers(FIRST_ITEM, FIRST_ITEM + 3), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
)


@settings(max_examples=50)
@given(users_of_items, st.integers(1, 20))
def test_the_share_is_that_of_events_before_test_whose_item_the_user_had(users, block):
    log = make_log([[(item, n, 1) for n, item in enumerate(user)] for user in users])
    could_be = [
        (user[:n], item)
        for user in users
        for n, item in enumerate(user if len(user) < 3 else user[:-1])
        if n > 0
    ]
    expected = np.mean([item in before for before, item in could_be]) if could_be else 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "EVENTS_AT_A_TIME", block)
        assert repeats.repeat_share(log) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("asked", "share", "removes"),
    [
        ("auto", 0.0, True),
        ("auto", 0.03, True),
        ("auto", 0.031, False),
        (True, 0.9, True),
        (False, 0.0, False),
    ],
)
def test_the_log_decides_unless_params_do(asked, share, removes):
    found = evaluation(remove_history=asked, max_repeat_share=0.03)
    assert repeats.removes_history(share, found) is removes


def test_a_rule_that_is_none_is_reported():
    with pytest.raises(ConfigError, match=r"evaluate\.remove_history: found 'never', expected"):
        evaluation(remove_history="never")


@pytest.mark.parametrize("remove", [True, False])
def test_validation_counts_what_could_be_served(remove, monkeypatch):
    log = random_log(5)
    log = replace(log, meta=replace(log.meta, remove_history=remove))
    scores = np.random.default_rng(0).random((log.meta.num_users, log.meta.num_items))
    scores[:, :FIRST_ITEM] = -np.inf

    class Fixed:
        def __init__(self, *_):
            pass

        def retrieve(self, histories):
            return scores[: len(histories)].astype(np.float32)

    hits, repeated = [], 0
    rows = np.flatnonzero(log.split == VALIDATION)
    for query, row in enumerate(rows):
        user = np.searchsorted(log.user_offsets, row, side="right") - 1
        seen = set(log.item[log.user_offsets[user] : row]) if remove else set()
        allowed = [i for i in range(FIRST_ITEM, log.meta.num_items) if i not in seen]
        best = sorted(allowed, key=lambda i: -scores[query, i])[: validation.CUTOFF]
        hits.append(log.item[row] in best)
        repeated += log.item[row] in seen
    assert repeated > 0 or not remove
    monkeypatch.setattr(validation, "Scorer", Fixed)
    measure = validation.Validation(log, max_history=50, num_queries=10**6, num_labelled=0, seed=0)
    found = measure(torch.nn.Linear(1, 1), torch.device("cpu"))
    assert found["validation_hr@10"] == pytest.approx(np.mean(hits))


@pytest.fixture(scope="module", params=[True, False], ids=["repeats", "no repeats"])
def judged_by(request, tmp_path_factory):
    """A log that repeats or not; its one model, judged by the log's own rule and by the other."""
    repeating = request.param
    users, found = own_run.walks(repeats=repeating), {}
    for asked in ("auto", repeating):  # removing is the other rule of a log that repeats
        folder = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as message:
            patch.chdir(folder)
            own_run.write_log(users)
            cfg = own_run.config(evaluate__remove_history=asked)
            own_run.sessionize(cfg)
            if not found:
                own_run.pretrain(cfg)
                own_run.finetune(cfg)
                trained = folder / "artifacts/finetune"
            else:
                shutil.copytree(trained, "artifacts/finetune")
            own_run.evaluate(cfg)
            found[asked] = Judged(
                message.getvalue(),
                own_run.session_meta()["remove_history"],
                own_run.served(cfg, users, K),
                own_run.metrics(),
                (folder / "artifacts/evaluation/report.html").read_text(),
            )
    return users, repeating, found


@pytest.mark.parametrize("own", [True, False], ids=["the log's rule", "the other rule"])
def test_the_served_list_holds_the_hidden_item_as_often_as_the_report_says(judged_by, own):
    users, repeating, found = judged_by
    judged = found["auto" if own else repeating]
    keeps = own == repeating
    assert judged.removes is not keeps
    assert ("such items stay in the answers" in judged.message) == keeps
    hits = sum(
        events[-1][0] in answer
        for events, answer in zip(users.values(), judged.answers, strict=True)
    )
    ranked = judged.metrics["R1"]["hpgr_then_rank"]
    assert ranked["hr@10"] == pytest.approx(hits / len(users), abs=1e-6)
    seen = [{item for item, _ in events[:-1]} for events in users.values()]
    assert any(s & set(a) for s, a in zip(seen, judged.answers, strict=True)) == keeps

    other = "R1_seen_removed" if keeps else "R1_seen_kept"
    assert ([*judged.metrics] == ["R1", other]) == repeating
    assert ("Seen items kept" in judged.page) == (repeating and not keeps)
    assert ("Seen items removed" in judged.page) == (repeating and keeps)


def test_the_other_way_is_what_the_other_rule_would_have_said(judged_by):
    """Both ways of one model: each figure equals that of a run by that rule alone."""
    _, repeating, found = judged_by
    if not repeating:
        assert all([*judged.metrics] == ["R1"] for judged in found.values())
        return
    for alone, beside, way in ((True, "auto", "R1_seen_removed"), ("auto", True, "R1_seen_kept")):
        for model in ("hpgr", "hpgr_then_rank", "popularity", "recency"):
            assert found[alone].metrics["R1"][model] == found[beside].metrics[way][model], model


def test_a_log_with_interleaved_sessions_is_served_as_judged(tmp_path, monkeypatch, capsys):
    """The two sessions of each user come through every stage as two, and answers know them."""
    monkeypatch.chdir(tmp_path)
    users = {
        user: [(item, action, "AB"[n % 2]) for n, (item, action) in enumerate(events)]
        for user, events in own_run.walks(repeats=False).items()
    }
    own_run.write_log(users)
    cfg = own_run.config()
    own_run.train(cfg)
    assert "kept by the log's own ids; one went on after another" in capsys.readouterr().out
    sessions = np.load("artifacts/sessions/arrays/session.npy").reshape(40, 12)
    assert (sessions == np.arange(12) % 2).all()
    answers = own_run.served(cfg, users, K)
    hits = sum(events[-1][0] in a for events, a in zip(users.values(), answers, strict=True))
    found = own_run.metrics()["R1"]["hpgr_then_rank"]["hr@10"]
    assert found == pytest.approx(hits / len(users), abs=1e-6)


def test_a_log_of_one_item_a_user_is_served_what_it_is_judged_by(tmp_path, monkeypatch, capsys):
    """Each user returns to one item: found always, and said; by the other rule never."""
    monkeypatch.chdir(tmp_path)
    users = {f"u{u}": [(f"i{u % 8}", "5")] * 6 for u in range(32)}
    own_run.write_log(users)
    cfg = own_run.config()
    own_run.train(cfg)
    assert "repeats: 100.0% of the next events" in capsys.readouterr().out
    found = own_run.metrics()
    assert found["R1"]["counts"]["repeated_targets"] == 32
    assert {
        row["hr@10"] for model, row in found["R1_seen_removed"].items() if model != "counts"
    } == {0.0}
    answers = own_run.served(cfg, users, K)
    hits = sum(e[-1][0] in a for e, a in zip(users.values(), answers, strict=True))
    assert found["R1"]["hpgr"]["hr@10"] == pytest.approx(hits / 32)


def test_test_events_do_not_decide(tmp_path, monkeypatch):
    """Repeats that only the hidden events hold leave the rule as it is."""
    monkeypatch.chdir(tmp_path)
    users = {f"u{u}": [(f"i{(u + n) % 9}", "5") for n in range(5)] for u in range(9)}
    users = {user: [*events, events[0]] for user, events in users.items()}
    own_run.write_log(users)
    sessionize.sessionize(own_run.config())
    meta = own_run.session_meta()
    assert (meta["repeat_share"], meta["remove_history"]) == (0.0, True)
