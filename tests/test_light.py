"""The training core where little is installed: a GPU machine with torch and a few packages."""

import json
import textwrap

import pytest
from bare_python import ROOT, BarePython
from training_runs import STAGES, last_row, write_project

ATTENTION, TRAINING, LONG = (
    ROOT / "benchmarks" / f"{name}.py"
    for name in ("attention_device", "training_device", "attention_long")
)

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


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return BarePython(tmp_path_factory.mktemp("packages"))


def test_both_stages_train_where_nothing_else_is_installed(bare, tmp_path):
    write_project(tmp_path)
    bare("-c", TRAIN, folder=tmp_path)
    for stage in STAGES:
        assert last_row(stage, tmp_path)["step"] > 0
        assert (tmp_path / "artifacts" / stage / "model.safetensors").is_file()
    config = json.loads((tmp_path / "artifacts" / "finetune" / "config.json").read_text())
    assert config["model"]["name"] == "hpgr" and config["model"]["tile"] == 16


def test_the_benchmark_of_attention_runs_there(bare, tmp_path):
    out = tmp_path / "figures.json"
    bare(str(ATTENTION), "--small", "--device", "cpu", "--out", str(out), folder=tmp_path)
    figures = json.loads(out.read_text())["attention"]
    assert {(f["precision"], f["way"]) for f in figures} == {
        (precision, way)
        for precision in ("float32", "bfloat16")
        for way in ("before", "tiles", "segments")
    }
    assert all(f["relative_difference"] < 0.02 for f in figures)


def test_the_benchmark_of_training_runs_there(bare, tmp_path):
    out = tmp_path / "figures.json"
    bare(str(TRAINING), "--small", "--device", "cpu", "--out", str(out), folder=tmp_path)
    figures = json.loads(out.read_text())["training"]
    speeds = [f for f in figures if "targets_per_second" in f]
    assert len(speeds) == 4 and all(f["targets_per_second"] > 0 for f in speeds)
    for figure in speeds:
        shares = [kernel["share"] for kernel in figure["kernels"]]
        assert shares == sorted(shares, reverse=True)
        assert 0.3 < sum(shares) <= 1.001 and 0 < figure["busy"] <= 1
    name = "largest_relative_loss_difference"
    apart = [f[name] for f in figures if name in f]
    assert len(apart) == 2 and max(apart) < 0.01


def test_the_benchmark_of_long_histories_runs_there(bare, tmp_path):
    out = tmp_path / "long.json"
    bare(str(LONG), "--small", "--device", "cpu", "--out", str(out), folder=tmp_path)
    found = json.loads(out.read_text())
    assert found["choice"]["name"] == "tiles"
    figures = found["figures"]
    parts = {(f["part"], f.get("way"), f.get("precision")) for f in figures}
    ways = {("attend", way, p) for way in ("tiles", "dense") for p in ("float32", "bfloat16")}
    assert parts == {("select", None, None), ("mask", None, None), *ways}
    assert all(f.get("relative_difference", 0) < 0.02 for f in figures)
    # By hand: 4 histories of 64, 2,080 pairs each; six products of width 64 and 4 heads.
    (dense,) = (
        f for f in figures
        if (f["length"], f.get("way"), f.get("precision")) == (64, "dense", "float32")
    )  # fmt: skip
    compute = 6 * 2 * 4 * 64 * 4 * 2080 / found["limits"]["float32"]
    memory = 11 * 256 * 4 * 64 * 4 / found["limits"]["memory"]
    assert dense["limit_ms"] == pytest.approx(1000 * max(compute, memory), abs=1e-4)
    assert dense["share_of_limit"] == pytest.approx(dense["limit_ms"] / dense["ms"], rel=0.01)
