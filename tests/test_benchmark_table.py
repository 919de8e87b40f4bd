"""The README's tables: what several seeds of a model and the baselines beside them become."""

from benchmarks import ablations
from benchmarks.table import COLUMNS, table


def result(seed, ndcg, baseline):
    row = {"hr@10": 0.1, "hr@50": 0.1, "hr@200": 0.1}
    return {
        "model": "hpgr-quick", "seed": seed, "metrics": row | {"ndcg@10": ndcg},
        "same_queries": {
            "ease": row | {"ndcg@10": baseline},
            "hpgr_then_rank": row | {"ndcg@10": ndcg - 0.01},
        },
        "num_params": 414_000, "best_step": 300, "steps": 400, "machine": "M", "date": "D",
    }  # fmt: skip


def test_seeds_become_a_mean_with_its_spread_and_the_best_mean_is_bold():
    text = table("T", COLUMNS["R1"], [result(0, 0.2, 0.21), result(1, 0.26, 0.21)])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    own, baseline, served = (next(r for r in rows if n in r) for n in ("profile", "EASE", "served"))
    assert "| **.2300** ± .0424 |" in own
    assert "| .2200 ± .0424 |" in served
    assert "| .2100 |" in baseline  # ahead of the first seed, not of the mean
    assert "seeds of a model: 2, mean" in text


def test_a_baseline_stands_with_the_run_that_gave_it_most():
    weak, strong = result(0, 0.2, 0.21), result(1, 0.26, 0.22)
    strong["same_queries"]["ease"]["hr@10"] = 0.3
    for order in ([weak, strong], [strong, weak]):
        text = table("T", COLUMNS["R1"], order)
        assert "| **.3000** | .2200 |" in next(r for r in text.splitlines() if "EASE" in r)


def test_a_part_that_is_taken_away_is_compared_seed_by_seed():
    whole = {seed: result(seed, ndcg, 0.2) for seed, ndcg in ((0, 0.2), (1, 0.3), (2, 0.9))}
    without = {"hpgr-no-sessions": {0: result(0, 0.19, 0.2), 1: result(1, 0.27, 0.2)}}
    text = ablations.table("T", "R1", whole, without)
    base, ablation = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert base == (
        "| **HPGR**, profile quick | .4667 ± .3786 | .1000 ± .0000 | 3 | 300, 300, 300 |"
    )
    assert ablation == ("| hpgr-no-sessions | -.0200 ± .0141 | +.0000 ± .0000 | 2 | 300, 300 |")


def test_an_ablation_is_a_model_that_differs_from_its_profile():
    assert "hpgr-no-sessions" in ablations.described()
    assert not {"hpgr", "hpgr-quick", "hstu"} & {*ablations.described()}
