"""What a training stage leaves behind: weights, configuration, metrics and curves, atomically."""

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
) -> None:
    """Write `model.safetensors`, `config.json`, `metrics.json` and `curves.csv` to `folder`.

    How the training ended stands in config.json too, as `training`; it holds no timing.
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
        **{k: round(v, 6) for k, v in best.items() if k not in ("epoch", "step")},
    }
    config = {**config, "training": asdict(ending)}
    with atomic_folder(folder) as out:
        save_file({k: v.cpu().contiguous() for k, v in weights.items()}, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        with (out / "curves.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(
                stream, fieldnames=list(outcome.curves[0]) if best else ["step", "loss"]
            )
            writer.writeheader()
            writer.writerows(outcome.curves)
    for sentence in ending.sentences(folder.name):
        print(sentence, flush=True)


def finish(scratch: Path, device: Device) -> None:
    """Remove the scratch folder of a run whose outputs are written; leave the process group."""
    if device.world > 1:
        distributed.barrier()
    if device.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    if device.world > 1:
        distributed.destroy_process_group()
