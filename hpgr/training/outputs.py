"""Outputs of a training stage, written atomically: weights, configuration, metrics, curves."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, distributed

from hpgr.runtime import atomic_folder
from hpgr.training.device import Device
from hpgr.training.loop import Outcome


def write_outputs(
    folder: Path,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    outcome: Outcome,
    device: Device,
    beside: dict[str, float] | None = None,
    tables: dict[str, Tensor] | None = None,
) -> None:
    """Write `model.safetensors`, `config.json`, `metrics.json` and `curves.csv` to `folder`.

    config.json also says how the training ended, as `training`; it holds no timing. metrics.json
    holds the scores of the best weights, and those `beside` them; `tables` lie beside the weights
    and are not counted as parameters.
    """
    best = outcome.curves[outcome.best] if outcome.curves else {}
    ending = outcome.ending
    metrics = {
        "best_step": ending.best_step,
        "steps": ending.steps,
        "planned_steps": ending.planned,
        "epochs": ending.epochs,
        "num_params": sum(v.numel() for v in weights.values() if v.is_floating_point()),
        "train_seconds": round(outcome.train_seconds, 1),
        "events_per_second": round(outcome.events_per_second, 1),
        "device": str(device.device),
        "precision": str(device.precision).removeprefix("torch."),
        "trained_on": "; ".join(outcome.trained_on),
        **{k: round(v, 6) for k, v in best.items() if k not in ("epoch", "step")},
        **{k: round(v, 6) for k, v in (beside or {}).items()},
    }
    weights = {**weights, **(tables or {})}
    _write(folder, weights, {**config, "training": asdict(ending)}, metrics, outcome.curves)
    for sentence in ending.sentences(folder.name):
        print(sentence, flush=True)


def write_untrained(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the same files for a model without a network of stage 1: no curves.

    Args:
        folder: of the stage.
        weights: what stage 1 fitted without a network.
        config: of the stage.
    """
    skipped = f"{config['model']['name']} has no network of stage 1: nothing to train"
    _write(folder, weights, {**config, "skipped": skipped}, {"steps": 0, "num_params": 0}, [])
    print(f"{folder.name}: {skipped}", flush=True)


def _write(
    folder: Path,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    metrics: dict[str, Any],
    curves: list[dict[str, float]],
) -> None:
    with atomic_folder(folder) as out:
        save_file({k: v.cpu().contiguous() for k, v in weights.items()}, out / "model.safetensors")
        for file, values in (("config.json", config), ("metrics.json", metrics)):
            (out / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        with (out / "curves.csv").open("w", newline="", encoding="utf-8") as stream:
            names = list(curves[0]) if curves else ["step", "loss"]
            writer = csv.DictWriter(stream, fieldnames=names)
            writer.writeheader()
            writer.writerows(curves)


def finish(scratch: Path, device: Device) -> None:
    """Remove the scratch folder of a run whose outputs are written; leave the process group."""
    if device.world > 1:
        distributed.barrier()
    if device.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    if device.world > 1:
        distributed.destroy_process_group()
