"""Labels that nothing learns to rank from: said beforehand, and the model retrieves only."""

from __future__ import annotations

import json
from pathlib import Path

import own_run
import pytest
from own_log import config as log_config
from own_log import write_csv
from sample_log import PARAMS

from hpgr.config import ConfigError, resolve
from hpgr.data import labels
from hpgr.intake.doctor import doctor
from hpgr.runtime import UserError

RATING, WORD = "sessionize.positive_from: ", "sessionize.positive_actions: "


def settings(**changes):
    return resolve({**PARAMS, "sessionize": {**PARAMS["sessionize"], **changes}}).sessionize


def test_both_labels_need_a_number_and_a_share_of_events():
    found = settings(min_label_events=30, min_label_share=0.001)
    assert [labels.can_rank(n, 1000, found) for n in (0, 29, 30, 970, 971, 1000)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    assert [labels.can_rank(n, 100_000, found) for n in (3, 99, 100, 99_900, 99_901)] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_a_log_without_actions_is_all_positive():
    assert labels.positives({None: 7}, settings()) == 7
    assert labels.positives({None: 7, "5": 2, "1": 4}, settings()) == 2


@pytest.mark.parametrize(
    ("counts", "changes", "advice"),
    [
        ({"0": 900, "1": 100}, {}, f"{RATING}1"),
        ({"1": 300, "2": 300, "3": 400}, {}, f"{RATING}3"),
        ({None: 900, "1": 100}, {}, f"{RATING}1"),
        ({"1": 500, "1.0": 40, "7.5": 460}, {"positive_from": 9}, f"{RATING}7.5"),
        ({"view": 900, "cart": 60, "buy": 40}, {}, f"{WORD}[buy]"),
        ({"hear": 900, "skip": 100}, {}, f"{WORD}[skip]"),
        ({"item image": 700, "clickout item": 200, "item info": 100}, {}, f"{WORD}[clickout item]"),
        ({"view": 950, "buy": 10, "cart": 40}, {}, f"{WORD}[cart]"),  # ten buys teach nothing
        ({"1": 500, "5": 500}, {"positive_from": None}, f"{RATING}5"),
        ({"4": 997, "5": 3}, {}, "No value of them leaves 30 events of either label"),
        ({"1": 1000}, {}, "a single action distinguishes nothing"),
        ({None: 1000}, {}, "name it in data.columns.action"),
    ],
)
def test_the_advice_names_what_the_log_has(counts, changes, advice):
    found = settings(**changes)
    events, positives = sum(counts.values()), labels.positives(counts, found)
    assert not labels.can_rank(positives, events, found)
    assert advice in labels.finding(positives, events, counts, found)[1]
    # The advice helps: what it names leaves enough of both labels.
    if advice.startswith(RATING):
        changes = {"positive_from": float(advice.removeprefix(RATING))}
    elif advice.startswith(WORD):
        changes = {"positive_from": None, "positive_actions": [advice[len(WORD) + 1 : -1]]}
    else:
        return
    better = settings(**changes)
    assert labels.can_rank(labels.positives(counts, better), events, better)


def clicks(action):
    return {
        user: [(item, action) for item, _ in events]
        for user, events in own_run.walks(repeats=False).items()
    }


def carts():
    users = own_run.walks(repeats=False)
    return {
        user: [(item, ("view", "view", "cart", "buy")[n % 4]) for n, (item, _) in enumerate(events)]
        for user, events in users.items()
    }


def flags():
    users = own_run.walks(repeats=False)
    return {
        user: [(item, str(n % 2)) for n, (item, _) in enumerate(events)]
        for user, events in users.items()
    }


LOGS = {
    "plain clicks": (clicks(None), "all 400 events are positive"),
    "only flags of 1": (clicks("1"), "all 400 events are negative"),
    "flags of 0 and 1": (flags(), "for example, sessionize.positive_from: 1"),
    "words": (carts(), "for example, sessionize.positive_actions: [buy]"),
}


@pytest.mark.parametrize("name", LOGS)
def test_one_line_says_at_once_that_nothing_will_rank(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    users, message = LOGS[name]
    own_run.write_log(users)
    own_run.sessionize(own_run.config())
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text]
    assert line.startswith("labels: of the training events, ") and message in line


def test_a_log_of_one_label_is_judged_and_served_by_retrieval_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    users, _ = LOGS["words"]
    own_run.write_log(users)
    cfg = own_run.config()
    own_run.train(cfg)
    assert not own_run.read_ranked()
    found = own_run.metrics()["R1"]
    assert "hpgr" in found and "hpgr_then_rank" not in found
    answers = own_run.served(cfg, users, 10)  # no item has a score
    hits = sum(events[-1][0] in a for events, a in zip(users.values(), answers, strict=True))
    assert found["hpgr"]["hr@10"] == pytest.approx(hits / len(users))


def test_k1_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_run.write_log(clicks(None))
    cfg = own_run.config(sessionize__split="global-time", finetune__ranking_weight=1.0)
    own_run.train(cfg)
    assert list(own_run.metrics()) == ["R2"]
    page = Path("artifacts/evaluation/report.html").read_text()
    assert "(K1) is left out: nothing learns to rank from a log with too few events" in page


def test_early_stopping_on_a_ranking_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_run.write_log(clicks("click"))
    cfg = own_run.config(finetune__monitor="validation_auc")
    own_run.sessionize(cfg)
    own_run.pretrain(cfg)
    with pytest.raises(UserError, match=r"monitor is validation_auc.*too few training events"):
        own_run.finetune(cfg)
    assert not Path("artifacts/finetune").exists()
    with pytest.raises(ConfigError, match=r"validation_auc needs a ranking head"):
        own_run.config(finetune__monitor="validation_auc", finetune__ranking_weight=0.0)


def test_labels_enough_are_ranked_and_nothing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_run.write_log(own_run.walks(repeats=False))
    own_run.sessionize(own_run.config())
    assert not capsys.readouterr().out
    meta = json.loads(Path("artifacts/sessions/arrays/meta.json").read_text())
    assert meta["can_rank"] is True


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ([(f"u{n % 7}", f"i{n // 7}", 10**9 + n) for n in range(140)], ["one label"]),
        ([(f"u{n % 7}", f"i{n % 2}", 10**9 + n) for n in range(140)], ["repeats", "one label"]),
    ],
)
def test_the_doctor_says_beforehand_what_will_be_decided(tmp_path, rows, kinds):
    cfg, outlook = log_config(tmp_path), []
    assert doctor(write_csv(tmp_path / "log.csv", rows), cfg, outlook) == []
    assert [note.kind for note in outlook] == kinds
    assert not any(note.serious for note in outlook)
    if "repeats" in kinds:
        assert outlook[0].found.startswith(f"{126 / 133:.1%} of the next events")


def test_the_doctor_names_a_positive(tmp_path):
    rows = [(f"u{n % 7}", f"i{n // 7}", 10**9 + n, n % 2) for n in range(140)]
    path = write_csv(tmp_path / "log.csv", rows, "user_id,item_id,timestamp,flag")
    outlook = []
    assert doctor(path, log_config(tmp_path, columns={"action": "flag"}), outlook) == []
    assert [note.column for note in outlook] == ["flag"]
    assert "sessionize.positive_from: 1" in str(outlook[0])
