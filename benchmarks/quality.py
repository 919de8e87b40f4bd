"""Train and judge one model on ML-1M and record the result: one file a run.

    python benchmarks/quality.py --profile hstu                            HSTU, protocol R1
    python benchmarks/quality.py --profile full --beside hstu              HPGR, protocol R1
    python benchmarks/quality.py --profile hstu-ranking                    HSTU, R2 and K1
    python benchmarks/quality.py --profile ranking --beside hstu-ranking   HPGR, R2 and K1

A run lives in a folder of its own below build/quality/ and resumes from its checkpoint. Reads
artifacts/validated (run `hpgr fetch ml-1m` and `hpgr validate` first) and params.yaml. Writes
benchmarks/results/PROTOCOL-ml-1m-MODEL-SEED.json: the metrics on test, and what made them. The
simple baselines of the same queries stand in the same file; `--beside` names the profile of a run
that is there already, whose HSTU then stands in the same report, with paired differences.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from hpgr.config import load_config
from hpgr.profiles import read_overrides, set_params
from hpgr.runtime import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATASET = "ml-1m"


def main() -> None:
    """Parse the command line, run the stages, write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--profile", required=True, help="name of a file in profiles/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", help="profile of a finished HSTU run with the same seed")
    parser.add_argument("--name", help="of the model in the results; default: model.name")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    folder = prepare(arguments)
    os.chdir(folder)
    cfg = load_config()
    stages = ["sessionize", "pretrain", "finetune", "evaluate"]
    if cfg.model.name != "hpgr":
        stages.remove("pretrain")
    for stage in stages:
        if (folder / f"{stage}.done").exists():
            continue
        subprocess.run([sys.executable, "-m", "hpgr.cli", stage], check=True)
        (folder / f"{stage}.done").touch()
    metrics = read_json(Path("artifacts/evaluation/metrics.json"))
    trained = read_json(Path("artifacts/finetune/metrics.json"))
    name = arguments.name or cfg.model.name
    for protocol, rows in metrics.items():
        others = [model for model in rows if model not in (cfg.model.name, "counts")]
        target = RESULTS / f"{protocol}-{DATASET}-{name}-{arguments.seed}.json"
        write_json(
            target,
            {
                "protocol": protocol,
                "dataset": DATASET,
                "model": name,
                "seed": arguments.seed,
                "metrics": rows[cfg.model.name],
                "num_params": trained["num_params"],
                "train_seconds": trained["train_seconds"],
                "events_per_second": trained["events_per_second"],
                "steps": trained["steps"],
                "best_step": trained["best_step"],
                "epochs": trained["epochs"],
                "machine": machine(),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "command": command(),
                "same_queries": {model: rows[model] for model in others},
            },
        )
        print(f"wrote {target.relative_to(ROOT)}")


def prepare(arguments: argparse.Namespace) -> Path:
    """The run's folder with its own params.yaml and the validated log."""
    name = "-".join([arguments.profile, str(arguments.seed), *arguments.set]).replace("/", "_")
    folder = ROOT / "build" / "quality" / name
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    validated = folder / "artifacts" / "validated"
    if not validated.exists():
        validated.symlink_to(ROOT / "artifacts" / "validated")
    if arguments.beside:
        other = folder.parent / f"{arguments.beside}-{arguments.seed}" / "artifacts" / "finetune"
        link = folder / "artifacts" / "finetune_hstu"
        link.unlink(missing_ok=True)
        link.symlink_to(other.resolve(strict=True))
    changes = {"pretrain.seed": arguments.seed, "finetune.seed": arguments.seed}
    changes |= read_overrides(arguments.set)
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(changes, arguments.profile, folder / "params.yaml", ROOT / "profiles")
    return folder


def machine() -> str:
    """Processor, cores and the threads that torch used, in words."""
    import torch

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


def command() -> str:
    """The command line, as a person would type it."""
    return "python benchmarks/quality.py " + " ".join(sys.argv[1:])


if __name__ == "__main__":
    main()
