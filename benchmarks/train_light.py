"""Cells of the benchmark trained within a time budget, where little more than torch is installed.

    python benchmarks/train_light.py CELLS.tar --out FOLDER [--seconds 480] [--at-once 8]

Needs torch, numpy, safetensors, tqdm and PyYAML. CELLS.tar is what `benchmarks/gpu_cells.py
prepare` made, with the most wanted cell first. Each cell trains both stages in a process of its
own, several at once on one device; none is started with less than --least seconds left, and what
still runs at the end leaves a checkpoint. SIGTERM and SIGINT are the end too.

Writes below FOLDER: `cells.json`, the summary, after every change of a cell's state;
`trained.tar.0`, `.1`, ...: one archive of outputs, checkpoints and logs in parts of at most
--part-mib, since some machines return only small files. Finished cells come first; what no part
has room for is left out, and the summary says so. `benchmarks/gpu_cells.py collect` reads both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import tempfile
import time
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP; see hpgr.cli

import yaml
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.stage_code import code_digests  # noqa: E402
from hpgr.runtime import UserError, read_json, write_json  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

MANIFEST, SUMMARY, TRAINED = "manifest.json", "cells.json", "trained.tar"
TRAINING = ("pretrain", "finetune")
BLOCK = 512  # of a tar file
NEWEST, BEST = "checkpoint.safetensors", "best.safetensors"
STOPPED = 143  # exit code of a training that was asked to stop
STATES = ("done", "stopped", "failed", "not started")


class CellRun:
    """One cell: its folder, its process and its place in the summary."""

    def __init__(self, entry: dict[str, Any], root: Path) -> None:
        self.entry, self.folder = entry, root / entry["folder"]
        self.workspace = Workspace(self.folder)
        self.process: multiprocessing.process.BaseProcess | None = None
        self.began, self.seconds, self.asked = 0.0, 0.0, False
        self.state, self.brought = "not started", False

    def start(self) -> None:
        """Train in a process of its own."""
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=train, args=(str(self.folder),))
        self.began, self.state = time.monotonic(), "running"
        self.process.start()

    def stop(self) -> None:
        """Ask for a checkpoint and the end, once."""
        if self.process and not self.asked:
            self.asked = True
            self.process.terminate()

    def ended(self) -> bool:
        """Return True once the process has ended, with `state` set."""
        if not self.process or self.process.exitcode is None:
            return False
        self.seconds = time.monotonic() - self.began
        if self.process.exitcode == 0:
            self.state = "done"
        else:
            self.state = "stopped" if self.asked or self.process.exitcode == STOPPED else "failed"
        return True

    def summary(self) -> dict[str, Any]:
        """State, progress and place of the training, as `cells.json` has them."""
        found = {"state": self.state, "exit_code": self.process and self.process.exitcode}
        place = self.folder / "trained_on.json"
        place_of = read_json(place) if place.is_file() else {}
        stages = {name: self._progress(name) for name in TRAINING}
        last_words = {"error": self._last_words()} if self.state == "failed" else {}
        return {
            **self.entry, **found, "seconds": round(self.seconds, 1), **place_of,
            "stages": stages, **last_words, "brought": self.brought,
        }  # fmt: skip

    def _progress(self, stage: str) -> dict[str, Any]:
        """Steps, seconds and speed of a stage, from its output or its newest checkpoint."""
        metrics = self.workspace.output(stage) / "metrics.json"
        if metrics.is_file():
            found = read_json(metrics)
            names = {"steps": "steps", "planned_steps": "planned", "train_seconds": "seconds",
                     "events_per_second": "targets_per_second"}  # fmt: skip
            return {"done": True} | {new: found[old] for old, new in names.items() if old in found}
        if scratch := newest(self.workspace, stage):
            state = counters(scratch)
            speed = round(state["events"] / max(state["seconds"], 1e-9), 1)
            return {"done": False, "steps": state["step"], "planned": state["planned"],
                    "seconds": round(state["seconds"], 1), "targets_per_second": speed}  # fmt: skip
        return {"done": False, "steps": 0}

    def _last_words(self) -> str:
        log = self.folder / "train.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def files(self) -> list[Path]:
        """Outputs, checkpoints and the log; not the inputs, nor the checkpoint before the last."""
        found = [*self.folder.glob("train.log")]
        for stage in TRAINING:
            found += sorted(self.workspace.output(stage).glob("*.*"))
            if scratch := newest(self.workspace, stage):
                found += [path for path in kept(scratch) if path.is_file()]
        return found


def newest(workspace: Workspace, stage: str) -> Path | None:
    """The folder of the stage's newest checkpoint; others are of other parameters."""
    found = workspace.checkpoints.glob(f"{stage}-*/{NEWEST}")
    path = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return path and path.parent


def kept(scratch: Path) -> list[Path]:
    """The files that a training goes on from; not the checkpoint before the last."""
    return [scratch / NEWEST, scratch / BEST]


def counters(scratch: Path) -> dict[str, Any]:
    """Steps, seconds and so on of the checkpoint in a folder."""
    with safe_open(scratch / NEWEST, framework="np") as file:
        return dict(json.loads(file.metadata()["state"]))


def settings() -> SimpleNamespace:
    """params.yaml of the working folder as plain objects."""
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    return SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in raw.items()})


def train(folder: str) -> None:
    """Both stages in `folder`, stage 1 unless it is there; what they print goes to train.log."""
    os.chdir(folder)
    log = os.open("train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from hpgr.training.device import choose_device
    from hpgr.training.finetune import finetune
    from hpgr.training.pretrain import pretrain

    torch.set_num_threads(1)
    cfg, workspace = settings(), Workspace()
    try:
        device = choose_device(cfg.finetune.device, cfg.finetune.precision)
        write_json(Path("trained_on.json"), {"device": str(device), "torch": torch.__version__})
        if not workspace.pretrained.is_dir():
            pretrain(cfg)  # type: ignore[arg-type]
        finetune(cfg)  # type: ignore[arg-type]
    except UserError as error:
        sys.exit(f"error: {error}")


def run(asked: argparse.Namespace, end: float) -> list[CellRun]:
    """Train what the archive holds until `end`; returns the cells, ended, stopped or not begun."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    with tempfile.TemporaryDirectory(prefix="cells-") as scratch:
        root = Path(scratch)
        with tarfile.open(asked.cells) as archive:
            archive.extractall(root, filter="data")
        manifest = read_json(root / MANIFEST)
        check_code(manifest["code"])
        runs = [CellRun(entry, root) for entry in manifest["cells"]]
        while True:
            now = time.monotonic()
            over = stopping or now > end - asked.grace
            active = [run for run in runs if run.state == "running"]
            for run in active:
                if over:
                    run.stop()
                if now > end and run.process:
                    run.process.kill()
            waiting = [run for run in runs if run.state == "not started"]
            if waiting and not over and len(active) < asked.at_once:
                if end - asked.grace - now >= asked.least:
                    waiting[0].start()
                    continue
                waiting = []
            if not active and (over or not waiting):
                break
            connection.wait([run.process.sentinel for run in active if run.process], timeout=0.5)
            ended = [run for run in active if run.ended()]
            for run in ended:
                print(f"{run.entry['cell']}: {run.state} after {run.seconds:.0f} s", flush=True)
            if ended:
                write_summary(asked, runs)
        write_summary(asked, runs, pack(asked, runs, root))
    return runs


def check_code(prepared: dict[str, str]) -> None:
    """Refuse to train by other code than the cells were prepared with.

    Raises:
        UserError: a file that training imports differs.
    """
    here = code_digests()
    if changed := [stage for stage in TRAINING if prepared[stage] != here[stage]]:
        raise UserError(
            f"the code of {' and '.join(changed)} differs from the one that the cells were "
            "prepared with: prepare them again at this commit (benchmarks/gpu_cells.py)"
        )


def pack(asked: argparse.Namespace, runs: list[CellRun], root: Path) -> str:
    """Write what was trained as one archive in parts; sets each run's `brought`.

    Returns:
        the sha256 of the archive.
    """
    room = asked.parts * int(asked.part_mib * 2**20) - 20 * BLOCK  # the end of an archive is padded
    order = sorted(runs, key=lambda run: run.state != "done")  # stable: by priority within each
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for run in order:
                files = run.files() if run.state != "not started" else []
                size = sum(path.stat().st_size + 4 * BLOCK for path in files)
                if not files or size > room:
                    continue
                room -= size
                run.brought = True
                for path in files:
                    archive.add(path, str(path.relative_to(root)))
        whole.seek(0)
        digest, number = hashlib.sha256(), 0
        while part := whole.read(int(asked.part_mib * 2**20)):
            (asked.out / f"{TRAINED}.{number}").write_bytes(part)
            digest.update(part)
            number += 1
    return digest.hexdigest()


def write_summary(asked: argparse.Namespace, runs: list[CellRun], sha256: str = "") -> None:
    """Write cells.json; a crash later leaves the last whole one."""
    write_json(
        asked.out / SUMMARY,
        {
            "budget_s": asked.seconds,
            "at_once": asked.at_once,
            "sha256": sha256,
            "cells": [run.summary() for run in runs],
        },
    )


def main() -> None:
    """Train what the command line names; exit code 1 if a cell failed."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="the archive of benchmarks/gpu_cells.py prepare")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480.0, help="in all, from the start on")
    parser.add_argument("--at-once", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--least", type=float, default=45.0, help="seconds that a start is worth")
    parser.add_argument("--grace", type=float, default=15.0, help="of these, to write checkpoints")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--part-mib", type=float, default=15.0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        runs = run(asked, began + asked.seconds)
    except (UserError, OSError, tarfile.TarError) as error:
        sys.exit(f"error: {error}")
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    print(", ".join(f"{count} {state}" for state, count in counts.items()), flush=True)
    sys.exit(1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
