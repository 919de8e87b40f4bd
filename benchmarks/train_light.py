"""Both training stages in prepared folders, with no more than a bare machine with a GPU has.

    python benchmarks/train_light.py FOLDER ...

Needs torch, numpy, safetensors, tqdm and PyYAML. Each FOLDER has params.yaml,
artifacts/sessions/arrays and, to train on impressions, lists beside them; all of them train at
once, each in a process of its own. Writes
artifacts/pretrain, artifacts/finetune and trained_on.txt there.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP; see hpgr.cli

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def settings() -> SimpleNamespace:
    """params.yaml of the working folder as plain objects."""
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    return SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in raw.items()})


def train(folder: str) -> None:
    """Both stages in `folder`; what they print goes to train.log there."""
    os.chdir(folder)
    log = os.open("train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from hpgr.training.finetune import finetune
    from hpgr.training.pretrain import pretrain

    torch.set_num_threads(1)
    began = time.monotonic()
    for stage in (pretrain, finetune):
        stage(settings())  # type: ignore[arg-type]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    Path("trained_on.txt").write_text(f"{device}, torch {torch.__version__}\n")
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Train in every folder named on the command line, all at once."""
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/train_light.py FOLDER ...")
    context = multiprocessing.get_context("spawn")
    runs = {f: context.Process(target=train, args=(f,)) for f in sys.argv[1:]}
    for run in runs.values():
        run.start()
    for folder, run in runs.items():
        run.join()
        print(f"{folder}: exit code {run.exitcode}", flush=True)


if __name__ == "__main__":
    main()
