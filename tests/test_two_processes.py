"""Both stages by two processes under torchrun, of which one is killed, against one process.

The one process takes the batches of both in one step and the mean of their losses.
"""

import csv
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import STAGES, both, log_with_categories, parameters, train_both, write_project

import hpgr.training.finetune as stage_two
import hpgr.training.pretrain as stage_one
from benchmarks.stage_one import item_vectors
from hpgr.data.batches import TrainingWindows
from hpgr.model.scoring import Scorer
from hpgr.training import item_probe, labelled_validation, validation
from hpgr.training.device import Device

TESTS = Path(__file__).parent
PARTS = {
    (validation, "EVENTS_AT_A_TIME"): 50,
    (labelled_validation, "EVENTS_AT_A_TIME"): 50,
    (item_probe, "CELLS_AT_A_TIME"): 500,
}
CHANGES = both(16, "steps") | both(8, "validate_steps") | both(4, "checkpoint_steps")

SCRIPT = textwrap.dedent(
    """
    import os, signal
    from pathlib import Path
    import torch
    from training_runs import parameters, train_both
    from test_two_processes import CHANGES, PARTS, TrainingWindows, Scorer

    torch.set_num_threads(1)
    for (module, name), value in PARTS.items():
        setattr(module, name, value)
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    batch, retrieve, answered = TrainingWindows.batch, Scorer.retrieve, []

    def interrupted(self, windows, epoch, index):
        if attempt == 0 and (epoch, index) == (1, 5):  # step 6 of the second process
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, windows, epoch, index)

    def counted(self, histories):
        answered.append(len(histories))
        return retrieve(self, histories)

    TrainingWindows.batch, Scorer.retrieve = interrupted, counted
    # Both stages in one process keep its group.
    leave, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, int
    train_both(parameters(**CHANGES))
    leave()
    Path(f"answered-{rank}").write_text(str(sum(answered)))
    """
)


class Pairs(TrainingWindows):
    """The batches of both processes as one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches_per_epoch //= 2

    def plan(self, epoch):
        plan = super().plan(epoch)
        return list(zip(plan[::2], plan[1::2], strict=False))

    def batch(self, windows, epoch, index):
        pair = [TrainingWindows.batch(self, windows[r], epoch, 2 * index + r) for r in (0, 1)]
        return SimpleNamespace(pair=pair, target=np.concatenate([one.target for one in pair]))


def mean_of_both(loss):
    """The loss of a pair of batches, each drawn for as its process does."""

    def mean(*args):
        *settings, model, batch, epoch, index = args
        found = []
        for rank, one in enumerate(batch.pair):
            process = Device(torch.device("cpu"), torch.float32, rank, world=2)
            process.seed_step(0, epoch, index)
            own = [replace(s, rank=rank) if isinstance(s, Device) else s for s in settings]
            found.append(loss(*own, model, one, epoch, index))
        return {name: (found[0][name] + found[1][name]) / 2 for name in found[0]}

    return mean


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Folder and output of the run by two processes."""
    folder = tmp_path_factory.mktemp("together")
    write_project(folder)
    (folder / "both.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "--max-restarts=1", "both.py",
        ],
        cwd=folder, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder of the run by one process, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    write_project(folder)
    enough = SimpleNamespace(require=lambda *_: "")  # memory is counted on one batch, not on pairs
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        for stage in (stage_one, stage_two):
            patch.setattr(stage, "TrainingWindows", Pairs)
            patch.setattr(stage, "_loss", mean_of_both(stage._loss))
            patch.setattr(stage, "MemoryNeed", SimpleNamespace(of=lambda *_: enough))
        train_both(parameters(**CHANGES))
    return folder


def curves(folder, stage):
    with (folder / f"artifacts/{stage}/curves.csv").open() as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def metrics(folder, stage):
    return json.loads((folder / f"artifacts/{stage}/metrics.json").read_text())


@pytest.fixture
def small_parts(monkeypatch):
    for (module, name), value in PARTS.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_as_one_although_one_was_killed(stage, together, alone):
    expected, found = curves(alone, stage), curves(together[0], stage)
    assert [row["step"] for row in found] == [8, 16]
    for one, other in zip(expected, found, strict=True):
        losses = {k: v for k, v in one.items() if k.endswith("loss")}
        assert {k: other[k] for k in losses} == pytest.approx(losses, rel=1e-3)


def test_the_killed_run_went_on_from_its_checkpoint(together):
    folder, said = together
    assert "2 processes" in said
    assert "pretrain: goes on at step 4 of 16" in said
    assert not list((folder / "checkpoints").glob("*-*"))


def test_validation_is_shared_and_exact(together, small_parts):
    folder, _ = together
    log, cfg = log_with_categories(), parameters(**CHANGES)
    measured = validation.Validation(
        log,
        max_history=cfg.model.max_history,
        num_queries=cfg.finetune.validation_queries,
        num_labelled=cfg.finetune.validation_events,
        seed=0,
    )
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # as in training
    scorer = Scorer.load(folder / "artifacts/finetune")
    found = metrics(folder, "finetune")
    for name, score in measured(scorer.model, scorer.device).items():
        assert found[name] == round(score, 6)
    calibration = json.loads((folder / "artifacts/finetune/config.json").read_text())["calibration"]
    assert calibration == measured.calibration(scorer.model, scorer.device)._asdict()
    each = [int((folder / f"answered-{rank}").read_text()) for rank in (0, 1)]
    assert min(each) > 0.3 * sum(each)


def test_the_probe_of_item_vectors_is_exact(together, small_parts):
    file = together[0] / "artifacts/pretrain/model.safetensors"
    assert load_file(file)
    expected = item_probe.SessionProbe(log_with_categories(), seed=0)(item_vectors(file))
    found = metrics(together[0], "pretrain")
    assert {k: round(v, 6) for k, v in expected.items()} == {k: found[k] for k in expected}
