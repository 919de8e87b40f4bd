"""The README's tables: what several seeds of a model and the baselines beside them become."""

from benchmarks import ablations
from benchmarks.table import COLUMNS, best_other, rows, table


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


def test_further_rows_of_a_model_have_its_seeds():
    """Those of two cells are of two models, though both networks have one name."""
    row = dict.fromkeys(COLUMNS["I1"], 0.1)
    results = [
        result(seed, 0.0, 0.0) | {
            "model": model, "metrics": row,
            "same_queries": {"position": row, "hpgr_next_item": row | {"gauc": gauc}},
        }
        for model, seed, gauc in (("hpgr", 0, 0.6), ("hpgr", 1, 0.7), ("hpgr-quick", 0, 0.5))
    ]  # fmt: skip
    lines = table("T", COLUMNS["I1"], results).splitlines()
    assert any(line.startswith("| HPGR, as next item | **.6500** ± .0707 |") for line in lines)
    assert any(line.startswith("| position as shown | .1000 |") for line in lines)
    assert sum("as next item" in line for line in lines) == 2


def test_a_baseline_stands_with_the_run_that_gave_it_most():
    weak, strong = result(0, 0.2, 0.21), result(1, 0.26, 0.22)
    strong["same_queries"]["ease"]["hr@10"] = 0.3
    for order in ([weak, strong], [strong, weak]):
        text = table("T", COLUMNS["R1"], order)
        assert "| **.3000** | .2200 |" in next(r for r in text.splitlines() if "EASE" in r)


def test_a_part_that_is_taken_away_is_compared_seed_by_seed():
    whole = {seed: result(seed, ndcg, 0.2) for seed, ndcg in ((0, 0.2), (1, 0.3), (2, 0.9))}
    without = {"hpgr-no-sessions": {0: result(0, 0.19, 0.2), 1: result(1, 0.27, 0.2)}}
    text = ablations.table("T", "R1", "hpgr-quick", whole, without)
    base, ablation = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert base == (
        "| **HPGR**, profile quick | .4667 ± .3786 | .1000 ± .0000 | 3 | 300, 300, 300 |"
    )
    assert ablation == ("| hpgr-no-sessions | -.0200 ± .0141 | +.0000 ± .0000 | 2 | 300, 300 |")


def test_an_ablation_is_a_model_that_differs_from_its_profile():
    found = {protocol: ablations.described(protocol) for protocol in ("R1", "K1")}
    assert not {"hpgr", "hpgr-quick", "hstu"} & {*found["R1"]}
    # Each is held against the model of its own profile.
    assert found["R1"]["hpgr-no-sessions"] == "hpgr-quick"
    assert found["K1"]["hpgr-no-sessions"] == "hpgr-short"
    assert found["K1"]["hpgr-long"] == found["K1"]["hstu-plain"] == "hpgr"
    assert found["R1"]["hpgr-full-no-sessions"] == "hpgr"


def test_trees_with_positions_are_not_the_model_with_positions():
    row = dict.fromkeys(COLUMNS["I1"], 0.1)
    beside = {f"{name}_with_position": row | {"gauc": gauc} for name, gauc in
              (("hpgr", 0.6), ("boosted_trees", 0.7))}  # fmt: skip
    judged = result(0, 0.0, 0.0) | {"model": "hpgr", "metrics": row, "same_queries": beside}
    lines = table("T", COLUMNS["I1"], [judged]).splitlines()
    assert any(line.startswith("| HPGR, with positions | .6000 |") for line in lines)
    assert any(
        line.startswith("| gradient-boosted trees, with positions | **.7000** |") for line in lines
    )


def test_forms_of_hpgr_are_not_held_against_each_other():
    models = {"hpgr": 0.5, "hpgr-short": 0.4, "mtgr": 0.2, "mtgr-residual": 0.3}
    found = rows(
        COLUMNS["R1"], [result(0, value, 0.0) | {"model": m} for m, value in models.items()]
    )
    others = {row.name: best_other(row, "ndcg@10", found).name for row in found if row.trained}
    assert others == {
        "hpgr": "mtgr-residual", "hpgr-short": "mtgr-residual", "mtgr": "hpgr",
        "mtgr-residual": "hpgr",
    }  # fmt: skip
