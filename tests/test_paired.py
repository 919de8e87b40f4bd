"""Each model against the best other one of its table: from cells with answers, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from judged_cells import candidates, judged_cell, queries
from sklearn.metrics import roc_auc_score

from benchmarks import against_best, matrix, results_file, table
from benchmarks.paired_answers import Answers, of_candidates, of_queries

SETTINGS = SimpleNamespace(bootstrap_samples=400, seed=0, cutoffs=[10])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path / results_file.RESULTS)


@pytest.fixture
def of_split(monkeypatch):
    """The settings of a comparison, without a benchmark's params.yaml."""
    own = {"evaluate": {}}
    monkeypatch.setattr(against_best, "read_matrix", lambda: None)
    monkeypatch.setattr(against_best, "settings", lambda *_: own)
    monkeypatch.setattr(
        against_best, "Evaluate", SimpleNamespace(model_validate=lambda _: SETTINGS)
    )


def column(cell, file, name):
    return pd.read_parquet(cell.workspace.evaluation / file)[name].to_numpy()


def gain(ranks):
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0)


def test_of_several_seeds_the_mean_of_each_query_counts():
    own, other = [judged_cell("hpgr", seed)[0] for seed in (0, 1)], judged_cell("mtgr", 0)[0]
    sides = [[Answers.of_network(c) for c in cells] for cells in (own, [other])]
    found = of_queries(*sides, SETTINGS)["ndcg@10"]
    values = [gain(column(cell, "queries.parquet", "rank_net")) for cell in (*own, other)]
    difference = (values[0] + values[1]) / 2 - values[2]
    assert found.value == pytest.approx(difference.mean())
    # Users are drawn with all their queries: the interval holds what whole users give.
    users = queries().user
    rng, means = np.random.default_rng(1), []
    for _ in range(400):
        drawn = rng.choice(np.unique(users), len(np.unique(users)))
        means.append(np.concatenate([difference[users == user] for user in drawn]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_areas_of_several_seeds_are_averaged():
    own, other = [judged_cell("hpgr", seed)[0] for seed in (0, 1)], judged_cell("mtgr", 0)[0]
    sides = [[Answers.of_network(c) for c in cells] for cells in (own, [other])]
    found = of_candidates(*sides, SETTINGS)
    label, user = candidates().label, candidates().candidate_user()
    scores = [column(c, "candidates.parquet", "probability_net") for c in (*own, other)]
    areas = [roc_auc_score(label, score) for score in scores]
    assert found["auc"].value == pytest.approx((areas[0] + areas[1]) / 2 - areas[2])
    assert found["auc"].low < found["auc"].value < found["auc"].high
    both = [u for u in np.unique(user) if len({*label[user == u]}) == 2]
    grouped = [
        np.average(
            [roc_auc_score(label[user == u], score[user == u]) for u in both],
            weights=[(user == u).sum() for u in both],
        )
        for score in scores
    ]
    assert found["gauc"].value == pytest.approx((grouped[0] + grouped[1]) / 2 - grouped[2])


def written():
    (path,) = against_best.write()
    rows = json.loads(path.read_text())["comparisons"]
    return {(row["protocol"], row["model"], row["metric"]): row for row in rows}


def test_a_model_stands_against_the_best_other_one(of_split):
    for name, seed in (("hpgr", 0), ("hpgr", 1), ("mtgr", 0)):
        judged_cell(name, seed, baselines=("ease", "popularity"))
    matrix.main(["publish"])
    found = written()
    for path in table.RESULTS.glob("R2-tiny-*.json"):
        result = json.loads(path.read_text())
        row = found["R2", result["model"], "ndcg@10"]
        means = {name: own["ndcg@10"] for name, own in result["same_queries"].items()}
        for name in {"hpgr", "mtgr"} - {result["model"]}:
            own = [json.loads(p.read_text()) for p in table.RESULTS.glob(f"R2-tiny-{name}-*")]
            means[name] = np.mean([r["metrics"]["ndcg@10"] for r in own])
        assert row["against"] == max(means, key=means.get)
        assert row["seeds"] == ([0, 1] if result["model"] == "hpgr" else [0])
    assert {key[0] for key in found} == {"R2", "K1"}


def test_a_comparison_stays_without_its_cells_until_its_results_are_replaced(of_split):
    cells = [judged_cell(name, seed)[0] for name, seed in (("hpgr", 0), ("hpgr", 1), ("mtgr", 0))]
    matrix.main(["publish"])
    first = written()
    (cells[0].workspace.evaluation / "metrics.json").unlink()
    assert written() == first  # of fewer seeds at hand, and so not replaced
    path = table.RESULTS / "R2-tiny-hpgr-0.json"
    result = json.loads(path.read_text())
    result["metrics"]["ndcg@10"] += 0.001
    path.write_text(json.dumps(result))
    results = [json.loads(p.read_text()) for p in table.RESULTS.glob("R2-*.json")]
    current = table.against_best("R2", "tiny", results)
    touched = {(r["model"], r["metric"]) for r in current if "hpgr" in (r["model"], r["against"])}
    assert ("hpgr", "ndcg@10") not in touched
    assert ("hpgr", "hr@10") in touched
    assert written()["R2", "hpgr", "ndcg@10"]["seeds"] == [1]


def test_the_lead_of_the_best_model_stands_with_its_interval(of_split):
    for name in ("hpgr", "mtgr"):
        judged_cell(name, 0, baselines=())
    matrix.main(["publish"])
    found = written()
    results = [json.loads(p.read_text()) for p in sorted(table.RESULTS.glob("K1-*.json"))]
    text = table.lead_of_best("K1", "tiny", results)
    best = max(results, key=lambda result: result["metrics"]["auc"])["model"]
    lead = found["K1", best, "auc"]
    interval = f"({lead['low']:+.4f} to {lead['high']:+.4f})"
    number = f"{lead['difference']:+.4f} AUC {interval}".replace("0.", ".")
    names = " over ".join(table.NAMES[n].strip("*") for n in (best, lead["against"]))
    assert f"intervals: {number} of {names}, seeds 0 / 0;" in text
