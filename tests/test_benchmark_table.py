"""The README's tables: what several seeds of a model and the baselines beside them become."""

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
