"""The evaluate stage from inputs on disk to outputs, with a network whose truth is known."""

import html
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_log import make_log, random_log, write_arrays
from one_by_one import OneByOne, Reread

from hpgr.config import load_config
from hpgr.data.log import FIRST_ITEM, TEST
from hpgr.evaluation import evaluate, protocols, ranking, retrieval
from hpgr.evaluation.blend import Blend
from hpgr.runtime import UserError
from hpgr.training.ending import Ending
from hpgr.workspace import HERE

CONFIG = load_config(Path(__file__).parents[1] / "params.yaml")
CONFIG = CONFIG.model_copy(
    update={
        "evaluate": CONFIG.evaluate.model_copy(
            update={"bootstrap_samples": 50, "report_users": 2, "cutoffs": (3, 10), "retrieve": 5}
        )
    }
)


class Knowing(OneByOne, Reread):
    """Knows the item that follows at each request time; likes items divisible by three."""

    def __init__(self, log):
        self.num_items = log.meta.num_items
        self.answers: dict[int, list[int]] = {}
        queries = protocols.next_item(log, TEST)
        for time, item in zip(queries.request_time, queries.target, strict=True):
            self.answers.setdefault(int(time), []).append(int(item))

    def retrieve(self, histories):
        scores = np.zeros((len(histories), self.num_items), dtype=np.float32)
        scores[:, :FIRST_ITEM] = -np.inf
        for q, time in enumerate(histories.request_time.tolist()):
            scores[q, self.answers.get(time, [])] = 1.0
        return scores

    def rank(self, histories, offsets, candidates):
        return np.where(candidates % 3 == 0, 0.9, 0.1).astype(np.float32)

    def explain(self, histories):
        newest = np.diff(histories.offsets) - 1
        none = np.full(len(newest), -1)
        return np.stack([newest, none], axis=1), np.ones((len(newest), 2), dtype=np.float32)


def prepare(log, monkeypatch, tmp_path, *, ranking_head=True):
    """Inputs of the stage below `tmp_path`, which becomes the working folder."""
    monkeypatch.chdir(tmp_path)
    write_arrays(log, HERE.sessions / "arrays")
    items = np.arange(FIRST_ITEM, log.meta.num_items)
    pd.DataFrame(
        {
            "item": items,
            "item_id": [f"i{i}" for i in items],
            "title": [None if i == FIRST_ITEM else f"<Title> & {i}" for i in items],
        }
    ).to_parquet(HERE.sessions / "items.parquet")
    users = np.arange(log.meta.num_users)
    pd.DataFrame({"user": users, "user_id": [f"u{u}" for u in users]}).to_parquet(
        HERE.sessions / "users.parquet"
    )
    pd.DataFrame({"action": [1, 2], "name": ["no", "yes"]}).to_parquet(
        HERE.sessions / "actions.parquet"
    )
    HERE.finetuned.mkdir(parents=True)
    config = {"model": {"name": "hpgr"}, "ranking": ranking_head, "finetune": {"temperature": 0.05}}
    (HERE.finetuned / "config.json").write_text(json.dumps(config))
    pd.DataFrame({"step": [1, 2], "epoch": [0, 1], "loss": [2.0, 1.0]}).to_csv(
        HERE.finetuned / "curves.csv", index=False
    )
    monkeypatch.setattr("hpgr.evaluation.judged.load_network", lambda folder, device: Knowing(log))


def metrics():
    return json.loads((HERE.evaluation / "metrics.json").read_text())


def test_leave_one_out_writes_every_declared_output(monkeypatch, tmp_path):
    log = random_log(0)
    prepare(log, monkeypatch, tmp_path)
    evaluate.evaluate(CONFIG)
    written = {str(p.relative_to(HERE.evaluation)) for p in HERE.evaluation.rglob("*.*")}
    assert written >= {
        "metrics.json",
        "verdict.json",
        "queries.parquet",
        "report.html",
        "plots/hr_at_k.csv",
        "plots/slices.csv",
        "plots/intervals.csv",
        "plots/differences.csv",
        "plots/popularity.csv",
        "figures/R1_hr_at_k.png",
        "figures/training_finetune.png",
    }
    settings = CONFIG.evaluate
    rules = json.loads((HERE.evaluation / "rules.json").read_text())
    weight = json.loads((HERE.evaluation / "like_weight.json").read_text())["like_weight"]
    assert rules == {
        "retrieve": settings.retrieve, "remove_history": True, "like_weight": weight,
    }  # fmt: skip
    assert list(metrics()["R1"]) == [
        *("hpgr", "hpgr_then_rank", "popularity", "recency", "transitions", "ease", "counts"),
    ]


def test_metrics_equal_the_means_of_the_ranks_in_the_query_table(monkeypatch, tmp_path):
    prepare(random_log(1), monkeypatch, tmp_path)
    evaluate.evaluate(CONFIG)
    table = pd.read_parquet(HERE.evaluation / "queries.parquet")
    for model, row in metrics()["R1"].items():
        if model != "counts":
            assert row["hr@10"] == pytest.approx((table[f"rank_{model}"] <= 10).mean(), abs=1e-6)


def test_the_result_on_validation_stands_in_file_report_and_terminal(monkeypatch, tmp_path, capsys):
    """The network knows the test items and no other: on validation a baseline is ahead of it."""
    prepare(random_log(0), monkeypatch, tmp_path)
    evaluate.evaluate(CONFIG)
    verdict = json.loads((HERE.evaluation / "verdict.json").read_text())
    assert (verdict["model"], verdict["serve_instead"]) == ("hpgr", "transitions")
    assert metrics()["R1"]["hpgr"]["hr@3"] > metrics()["R1"]["transitions"]["hr@3"]
    sentence = verdict["sentence"]
    assert sentence.startswith("Serve transitions instead of hpgr")
    assert sentence in html.unescape((HERE.evaluation / "report.html").read_text())
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_a_training_that_was_still_rising_is_reported(monkeypatch, tmp_path, capsys):
    prepare(random_log(0), monkeypatch, tmp_path)
    path = HERE.finetuned / "config.json"
    curves = [{"step": 10.0, "epoch": 1.0}, {"step": 20.0, "epoch": 2.0}]
    ending = Ending.of(curves, 1, wanted=20, planned=20, monitor="validation_ndcg@10")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": asdict(ending)}))
    evaluate.evaluate(CONFIG)
    for text in ((HERE.evaluation / "report.html").read_text(), capsys.readouterr().out):
        assert "validation was still rising when training stopped" in " ".join(text.split())


def test_global_time_judges_retrieval_and_ranking(monkeypatch, tmp_path):
    log = random_log(2, split="global-time")
    prepare(log, monkeypatch, tmp_path)
    evaluate.evaluate(CONFIG)
    found = metrics()
    assert list(found) == ["R2", "K1"]
    # random_log draws likes by divisibility, and so does the network.
    assert found["K1"]["hpgr"]["auc"] > 0.7
    assert found["K1"]["counts"]["candidates"] == (log.split == TEST).sum()
    assert (HERE.evaluation / "candidates.parquet").is_file()
    report = (HERE.evaluation / "report.html").read_text()
    for model, name in (
        ("boosted_trees", "gradient-boosted trees"),
        ("fold_in", "linear-Gaussian fold-in"),
    ):
        assert 0 < found["K1"][model]["auc"] < 1
        assert f"<td>{name}</td>" in report and f"{name}:" in report  # a row, and the choice made


def test_leave_one_out_stopped_by_auc_stands_beside_them_too(monkeypatch, tmp_path):
    prepare(random_log(2), monkeypatch, tmp_path)
    path = HERE.finetuned / "config.json"
    curves = [{"step": 10.0, "epoch": 1.0}]
    ending = Ending.of(curves, 0, wanted=20, planned=20, monitor="validation_auc")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": asdict(ending)}))
    evaluate.evaluate(CONFIG)
    assert list(metrics()) == ["R1"]
    verdict = json.loads((HERE.evaluation / "verdict.json").read_text())
    assert {"boosted_trees", "fold_in"} < set(verdict["values"])


def test_a_network_without_ranking_head_gets_no_ranking_rows(monkeypatch, tmp_path):
    prepare(random_log(2, split="global-time"), monkeypatch, tmp_path, ranking_head=False)
    evaluate.evaluate(CONFIG)
    assert list(metrics()) == ["R2"]
    assert "CTR, temporal (K1) is left out" in (HERE.evaluation / "report.html").read_text()


def test_same_inputs_give_the_same_bytes(monkeypatch, tmp_path):
    prepare(random_log(0), monkeypatch, tmp_path)
    evaluate.evaluate(CONFIG)
    first = (HERE.evaluation / "report.html").read_bytes()
    evaluate.evaluate(CONFIG)
    assert (HERE.evaluation / "report.html").read_bytes() == first


def test_missing_sessions_are_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hpgr sessionize"):
        evaluate.evaluate(CONFIG)


def test_missing_model_is_one_clear_error(monkeypatch, tmp_path):
    prepare(random_log(0), monkeypatch, tmp_path)
    (HERE.finetuned / "config.json").unlink()
    with pytest.raises(UserError, match="hpgr finetune"):
        evaluate.evaluate(CONFIG)


def test_an_empty_test_split_is_one_clear_error(monkeypatch, tmp_path):
    log = make_log([[(2, 1, 1), (3, 2, 1)]], held_out=[[0, 0]])
    prepare(log, monkeypatch, tmp_path)
    with pytest.raises(UserError, match="test split"):
        evaluate.evaluate(CONFIG)


def test_blocks_change_no_rank(monkeypatch):
    log = random_log(4, split="global-time")
    queries = protocols.next_item(log, TEST)
    network = Knowing(log)
    draw = {"max_history": 200, "title": "", "then_rank": (network, {True: Blend(0.5, 0.05)})}
    models = {"n": network}
    (whole,) = retrieval.run(log, queries, models, CONFIG.evaluate, **draw)
    monkeypatch.setattr(retrieval, "MAX_BLOCK", 3)
    (parts,) = retrieval.run(log, queries, models, CONFIG.evaluate, **draw)
    for name in ("n", "n_then_rank"):
        assert (whole[name].ranks == parts[name].ranks).all()
        assert (whole[name].top == parts[name].top).all()


@pytest.mark.parametrize("value", [np.nan, 1.5])
def test_what_is_no_probability_is_refused(value):
    log = random_log(0, split="global-time")
    asked = protocols.labelled(log, TEST)

    class Broken(OneByOne):
        def rank(self, histories, offsets, candidates):
            return np.full(len(candidates), value, dtype=np.float32)

    with pytest.raises(ValueError, match="between 0 and 1"):
        ranking.score(Broken(), log, asked, max_history=200, title="broken")
