"""The preference mechanism of a trained model: its anchors, and what taking them away costs.

    python benchmarks/mechanism.py [WORKSPACE] [--quick] [--out benchmarks/results/mechanism.json]

Measures the trained network of a workspace (the current folder) as `hpgr evaluate` does
(`hpgr.evaluation.mechanism`), but on validation events alone, more of them, and with the settings
of the project's params.yaml; and the order that is served beside retrieval's, on validation
queries. Figures `planted_*` are those of `benchmarks/planted.py`, of networks trained on the spot
in a minute or two. The last line is a JSON object of the figures. `--quick` asks fewer users.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import planted  # noqa: E402
from benchmarks.results_file import write_measured  # noqa: E402
from hpgr.config import Evaluate, load_config  # noqa: E402
from hpgr.data.log import VALIDATION, EventLog  # noqa: E402
from hpgr.evaluation import like_weight, mechanism  # noqa: E402
from hpgr.evaluation.mechanism import Mechanism  # noqa: E402
from hpgr.model.scoring import Scorer  # noqa: E402
from hpgr.runtime import read_json  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402


def measure(workspace: Workspace, *, quick: bool) -> dict[str, float]:
    """All figures of a trained workspace; those of candidates where a ranking is trained."""
    log, scorer = EventLog.open(workspace.arrays), Scorer.load(workspace.finetuned)
    trained = read_json(workspace.finetuned / "config.json")
    settings = load_config(ROOT / "params.yaml").evaluate.model_copy(
        update={"mechanism_queries": 500 if quick else 6000}
    )
    found = mechanism.measure(
        log,
        scorer,
        settings,
        split=VALIDATION,
        max_history=scorer.max_history,
        ranks=trained["ranking"],
        labels=trained.get("candidates", "events") == "events",
    )
    if found is None:
        raise SystemExit(f"{workspace.finetuned}: expected a network with model.preference: true")
    figures = flat(found)
    if trained["ranking"]:
        figures |= served(log, scorer, settings, trained["finetune"]["temperature"])
    return {name: round(value, 4) for name, value in figures.items()}


def flat(found: Mechanism) -> dict[str, float]:
    """The figures by short names; the drops relative for retrieval, absolute for AUC."""
    figures = {
        f"{metric}, {mode}": value
        for mode, row in found.values.items()
        for metric, value in row.items()
    }
    for mode, name in (("random", "random"), ("none", "no")):
        for metric, drop in found.drops[mode].items():
            if metric.startswith("ndcg@"):
                figures[f"ndcg_drop_{name}_anchors_relative"] = found.relative_drop(mode, metric)
            elif metric == "auc":
                figures[f"auc_drop_{name}_anchors"] = drop.value
    figures |= found.choice
    for name, change in found.deletion.items():
        figures[f"deletion_{name}"] = change.value
    return figures


def served(
    log: EventLog, scorer: Scorer, settings: Evaluate, temperature: float
) -> dict[str, float]:
    """NDCG of the order that is served over that of retrieval's, on the same queries."""
    rule = log.meta.remove_history
    choice = like_weight.choose(
        log,
        scorer,
        settings,
        temperature=temperature,
        max_history=scorer.max_history,
        metric=f"ndcg@{settings.cutoffs[0]}",
        rules=[rule],
    )[rule]
    if not choice.values.get(0.0):
        return {}
    best = choice.values[choice.like_weight]
    return {
        "like_weight": choice.like_weight,
        "served_over_retrieval_ndcg": best / choice.values[0.0],
    }


def main() -> None:
    """Measure one workspace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", nargs="?", type=Path, default=Path())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    workspace = Workspace(asked.workspace)
    torch.set_num_threads(1)
    figures = measure(workspace, quick=asked.quick) | planted.figures()
    if asked.out:
        trained = read_json(workspace.finetuned / "config.json")
        made_by = {"model": trained["model"], "training": trained["training"]}
        write_measured(asked.out, "mechanism.py", figures, **made_by)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
