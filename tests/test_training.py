"""Batches, the loop and its checkpoints: order, resume, stop."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import STAGES, parameters
from waiting import until

from hpgr.data.batches import TrainingWindows, events_before
from hpgr.data.histories import Histories
from hpgr.runtime import DamagedFile, UserError
from hpgr.training.checkpoint import load_tensors, save_atomic, scratch_folder
from hpgr.training.length import learning_rate_scale
from hpgr.training.pretrain import mask_events
from hpgr.workspace import Workspace

ROOT = Path(__file__).parents[1]


def windows(log, **changes):
    base = {
        "max_history": 20, "batch_tokens": 60, "num_candidates": 4,
        "random_windows": False, "seed": 0,
    }  # fmt: skip
    return TrainingWindows(log, **{**base, **changes})


def test_an_epoch_holds_every_user_once(small_log):
    data = windows(small_log)
    seen = np.concatenate(data.plan(3))
    assert sorted(seen) == list(range(len(data.start)))


def test_batches_are_a_pure_function_of_seed_epoch_and_index(small_log):
    first, second = windows(small_log, random_windows=True), windows(small_log, random_windows=True)
    plan = first.plan(2)
    second.batch(second.plan(0)[0], 0, 0)  # what was asked before must not matter
    one, two = first.batch(plan[1], 2, 1), second.batch(second.plan(2)[1], 2, 1)
    assert (one.histories.item == two.histories.item).all()
    assert (one.candidates.item == two.candidates.item).all()
    other = windows(small_log, seed=1).plan(2)
    assert [p.tolist() for p in other] != [p.tolist() for p in plan]


def test_batches_keep_their_token_budget(small_log):
    data = windows(small_log)
    for numbers in data.plan(0):
        # A batch may exceed the budget by its last window, no more.
        assert data.length[numbers].sum() < 60 + 20


@given(
    stamps=st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=5),
    time=st.integers(0, 10),
)
@settings(max_examples=50, deadline=None)
def test_events_before_counts_strictly_earlier_events(stamps, time):
    stamps = [sorted(s) for s in stamps]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in stamps])]).astype(np.int64)
    flat = np.array([t for s in stamps for t in s], dtype=np.int64)
    empty = np.zeros(len(flat))
    histories = Histories(offsets, empty, empty, flat, empty, np.zeros(len(stamps)))
    got = events_before(histories, np.arange(len(stamps)), np.full(len(stamps), time))
    assert got.tolist() == [sum(t < time for t in s) for s in stamps]


def test_masking_hides_the_share_asked_for_and_whole_sessions():
    length = 100
    histories = Histories(
        offsets=np.arange(0, 100 * length + 1, length),
        item=np.zeros(100 * length),
        action=np.zeros(100 * length),
        timestamp=np.arange(100 * length),
        session=np.tile(np.repeat(np.arange(10), 10), 100),
        request_time=np.zeros(100),
    )
    plain = mask_events(histories, np.random.default_rng(0), mask_share=0.2, session_mask_share=0.0)
    assert abs(plain.mean() - 0.2) < 0.02
    both = mask_events(histories, np.random.default_rng(0), mask_share=0.2, session_mask_share=1.0)
    whole = both.reshape(100, 10, 10).all(axis=2).sum(axis=1)
    assert (whole >= 1).all() and whole.mean() < 1.1


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate_scale(s, warmup=10, total=100, decay=True) for s in range(100)]
    assert rates[0] == 0.1 and rates[10] == 1.0
    assert all(b <= a for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert learning_rate_scale(99, warmup=10, total=100, decay=False) == 1.0


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_atomic(path, {"x": torch.ones(1000)}, {"step": 1})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        load_tensors(path)


RUN = textwrap.dedent(
    """
    import sys, time, yaml, torch
    from hpgr.config import resolve
    from hpgr.training.finetune import finetune
    from hpgr.training.pretrain import pretrain
    torch.set_num_threads(1)
    cfg = resolve(yaml.safe_load(open("params.yaml")))
    if "slow" in sys.argv:  # it must not end before it is interrupted
        from torch.optim.optimizer import register_optimizer_step_post_hook
        register_optimizer_step_post_hook(lambda *_: time.sleep(0.5))
    {"pretrain": pretrain, "finetune": finetune}[sys.argv[1]](cfg)
    """
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, arrays_writer):
    """A folder with a small log and parameters, as the stages expect them."""
    import yaml
    from params_text import params_of

    folder = tmp_path_factory.mktemp("workspace")
    arrays_writer(folder / "artifacts" / "sessions" / "arrays", num_users=60, seed=0)
    params = params_of("smoke")
    small = {"validate_steps": 10, "batch_tokens": 128, "checkpoint_steps": 1}
    params["pretrain"] |= {**small, "steps": 20}
    params["finetune"] |= {**small, "steps": 30, "validation_queries": 20}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


def run(folder, stage, *how, **kwargs):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, stage, *how]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **kwargs,
    )  # fmt: skip


def outputs(folder, stage):
    weights, _ = load_tensors(folder / "artifacts" / stage / "model.safetensors")
    curves = (folder / "artifacts" / stage / "curves.csv").read_text()
    return weights, curves


def wait_for_step(folder, stage, step):
    """Block until the stage's checkpoint has reached `step`."""

    def reached():
        found = list((folder / "checkpoints").glob(f"{stage}-*/checkpoint.safetensors"))
        # Between two checkpoints the file is gone for a moment: the old one is kept beside it. And
        # safetensors opens it twice, once for the header and once for the tensors.
        with suppress(FileNotFoundError, RuntimeError, DamagedFile):
            return found and load_tensors(found[0])[1]["step"] >= step

    until(reached, "a checkpoint")


@pytest.fixture(scope="module")
def undisturbed(workspace):
    """Weights and curves of a run that nobody interrupts."""
    process = run(workspace, "pretrain")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return outputs(workspace, "pretrain")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_ends_bitwise_where_an_uninterrupted_one_does(
    workspace, undisturbed, how
):
    expected, curves = undisturbed
    process = run(workspace, "pretrain", "slow")
    wait_for_step(workspace, "pretrain", 4)
    process.send_signal(how)
    text, _ = process.communicate(timeout=300)
    if how == signal.SIGTERM:
        assert process.returncode == 143, text
        assert "stopped on request" in text
    process = run(workspace, "pretrain")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    got, got_curves = outputs(workspace, "pretrain")
    assert got_curves == curves
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert not list((workspace / "checkpoints").glob("pretrain-*"))


def test_finetuning_inherits_the_trunk_and_writes_what_serving_needs(workspace):
    for stage in ("pretrain", "finetune"):
        process = run(workspace, stage)
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    folder = workspace / "artifacts" / "finetune"
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["name"] == "hpgr" and config["ranking"]
    assert config["calibration"]["slope"] != 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best_step"] in (10, 20, 30) and metrics["steps"] == 30
    assert {"validation_ndcg@10", "validation_auc", "num_params"} <= set(metrics)
    assert 0 < metrics["gradient_norm_selectors"] < metrics["gradient_norm"]


def test_no_training_events_is_reported(small_log):
    empty = SimpleNamespace(**{**small_log.__dict__, "split": np.full(len(small_log.item), 2)})
    with pytest.raises(UserError, match="no user has two training events"):
        windows(empty)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_belongs_to_every_parameter_of_its_stage(stage, tmp_path):
    """Also to those of other sections: the loss of stage 1 has stage 2's temperature."""
    workspace = Workspace(tmp_path)
    found = {scratch_folder(stage, parameters(), [], workspace)}
    changes = {"finetune__temperature": 0.1, "model__dim": 8, "finetune__full_items": 9}
    for name, value in {**changes, f"{stage}__seed": 7}.items():
        found.add(scratch_folder(stage, parameters(**{name: value}), [], workspace))
    assert len(found) == 5
    assert scratch_folder(stage, parameters(gate__margin=0.5), [], workspace) in found


def test_a_checkpoint_is_found_wherever_its_inputs_lie(tmp_path):
    """A run's files lie in other folders in a cell of the benchmark, or on a GPU machine."""
    found = set()
    for first, second in (("a", "b"), ("b", "a")):
        files = tmp_path / first / "item.npy", tmp_path / second / "model.safetensors"
        for path in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text(path.name)
        found.add(scratch_folder("finetune", parameters(), files, Workspace(tmp_path)))
    assert len(found) == 1
