"""Variables of a cluster: several processes only where torchrun started them, else one alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from params_text import params_text
from training_runs import write_project

from hpgr.runtime import UserError
from hpgr.torchrun import Launch, launched

ROOT = Path(__file__).parents[1]
WHOLE = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


def test_without_variables_a_process_is_alone():
    assert launched({}) == Launch(0, 1, 0, by_torchrun=False, ignored=None)
    # What a cluster leaves that says nothing about a place among processes.
    assert launched({"MASTER_ADDR": "node7", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == Launch()


def test_the_whole_set_is_taken_as_it_is():
    assert launched(WHOLE) == Launch(1, 4, 1, by_torchrun=True)
    one = WHOLE | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert launched(one) == Launch(0, 1, 0, by_torchrun=True)


@pytest.mark.parametrize("missing", WHOLE)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_a_set_that_lacks_one_is_ignored(missing, how):
    rest = {k: v for k, v in WHOLE.items() if k != missing} | (
        {missing: ""} if how == "empty" else {}
    )
    found = launched(rest)
    assert (found.rank, found.world, found.by_torchrun) == (0, 1, False)
    assert f"as {missing} is not set" in found.ignored


@pytest.mark.parametrize(
    "leftover",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"LOCAL_RANK": "3"},
        {"RANK": "1", "LOCAL_RANK": "1"},
        {"RANK": "5", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "node7", "SLURM_PROCID": "0"},
    ],
    ids=str,
)
def test_leftovers_are_named_and_ignored(leftover):
    found = launched(leftover)
    assert (found.rank, found.world, found.local_rank) == (0, 1, 0)
    assert all(f"{k}={v}" in found.ignored for k, v in leftover.items() if "SLURM" not in k)


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "4"},
        {"RANK": "-1"},
        {"RANK": "one"},
        {"RANK": "1.0"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "many"},
        {"LOCAL_RANK": "4"},
        {"LOCAL_RANK": "²"},
        {"MASTER_PORT": "http"},
        {"MASTER_PORT": "70000"},
    ],
    ids=str,
)
def test_a_whole_set_that_contradicts_itself_is_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=f"{name}={value}.*torchrun"):
        launched(WHOLE | change)


@pytest.fixture
def workspace(tmp_path):
    write_project(tmp_path)
    (tmp_path / "params.yaml").write_text(params_text("smoke"))
    return tmp_path


def pretrain(folder, **variables):
    """`hpgr pretrain` as a process of its own."""
    plain = {k: v for k, v in os.environ.items() if k not in WHOLE}
    env = plain | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, "-m", "hpgr.cli", "pretrain"],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("leftover", [{"RANK": "1"}, {"WORLD_SIZE": "2"}], ids=str)
def test_a_stage_with_leftovers_trains_alone_and_keeps_its_result(leftover, workspace):
    done = pretrain(workspace, **leftover)
    assert done.returncode == 0, done.stderr[-2000:]
    ((name, value),) = leftover.items()
    assert f"{name}={value} ignored" in done.stdout
    metrics = json.loads((workspace / "artifacts" / "pretrain" / "metrics.json").read_text())
    assert metrics["epochs"] >= 1


def test_a_stage_refuses_a_contradiction_before_it_trains(workspace):
    done = pretrain(workspace, **(WHOLE | {"RANK": "7"}))
    assert done.returncode == 2
    assert done.stderr.startswith("error: the environment sets RANK=7")
    assert "device" not in done.stdout and not (workspace / "artifacts" / "pretrain").exists()
