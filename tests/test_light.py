"""The training core where little is installed: a GPU machine with torch and a few packages."""

import json
import os
import subprocess
import sys
import textwrap
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from training_runs import STAGES, last_row, write_project

ROOT = Path(__file__).parents[1]
BENCHMARK = ROOT / "benchmarks" / "attention_device.py"
LONG = ROOT / "benchmarks" / "attention_long.py"
THERE = ("torch", "numpy", "safetensors", "tqdm", "pyyaml")

TRAIN = textwrap.dedent(
    """
    import importlib.util
    import torch
    from training_runs import parameters, train_both
    for name in ("pyarrow", "pandas", "pydantic", "ruamel", "rich", "typer", "scipy"):
        assert importlib.util.find_spec(name) is None, name
    train_both(parameters())
    """
)


def with_requirements(*packages):
    """Names of the distributions and of all that they require."""
    needed, open_ = set(), [canonicalize_name(package) for package in packages]
    while open_:
        package = open_.pop()
        if package in needed:
            continue
        needed.add(package)
        for requirement in map(Requirement, distribution(package).requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_.append(canonicalize_name(requirement.name))
    return needed


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Run Python over a site-packages of links to what is there: (arguments, folder)."""
    packages = tmp_path_factory.mktemp("packages")
    for name in with_requirements(*THERE):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", packages))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def run(*arguments, folder):
        done = subprocess.run(
            [sys.executable, "-S", *arguments],  # -S: not its own site-packages
            cwd=folder, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_both_stages_train_where_nothing_else_is_installed(bare, tmp_path):
    write_project(tmp_path)
    bare("-c", TRAIN, folder=tmp_path)
    for stage in STAGES:
        assert last_row(stage, tmp_path)["step"] > 0
        assert (tmp_path / "artifacts" / stage / "model.safetensors").is_file()
    config = json.loads((tmp_path / "artifacts" / "finetune" / "config.json").read_text())
    assert config["model"]["name"] == "hpgr" and config["model"]["tile"] == 16


def test_the_benchmark_of_a_device_runs_there(bare, tmp_path):
    out = tmp_path / "figures.json"
    bare(str(BENCHMARK), "--small", "--device", "cpu", "--out", str(out), folder=tmp_path)
    figures = json.loads(out.read_text())
    assert {(f["precision"], f["way"]) for f in figures["attention"]} == {
        (precision, way)
        for precision in ("float32", "bfloat16")
        for way in ("before", "tiles", "segments")
    }
    assert all(f["relative_difference"] < 0.02 for f in figures["attention"])
    apart = [
        f["largest_relative_loss_difference"]
        for f in figures["training"]
        if "largest_relative_loss_difference" in f
    ]
    assert len(apart) == 4 and max(apart) < 0.01


def test_the_benchmark_of_long_histories_runs_there(bare, tmp_path):
    out = tmp_path / "long.json"
    bare(str(LONG), "--small", "--device", "cpu", "--out", str(out), folder=tmp_path)
    figures = json.loads(out.read_text())
    assert figures["choice"]["name"] == "tiles"
    parts = {(f["part"], f.get("way"), f.get("precision")) for f in figures["figures"]}
    ways = {("attend", way, p) for way in ("tiles", "dense") for p in ("float32", "bfloat16")}
    assert parts == {("select", None, None), ("mask", None, None), *ways}
    assert all(f.get("relative_difference", 0) < 0.02 for f in figures["figures"])
