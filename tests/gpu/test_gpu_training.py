"""Training, resuming and scoring on a CUDA device against the same on the CPU.

Needs torch, numpy, safetensors, tqdm, PyYAML and pytest alone: `python -m pytest tests/gpu`.
"""

import json
import signal

import numpy as np
import pytest
import torch
from training_runs import both, last_row, log_with_categories, parameters, train_both, write_project

from hpgr.data.batches import TrainingWindows
from hpgr.data.histories import histories
from hpgr.model.scoring import Scorer
from hpgr.training.device import choose_device
from hpgr.training.finetune import finetune
from hpgr.training.loop import Stopped
from hpgr.training.pretrain import pretrain
from hpgr.workspace import HERE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
# Of a mean loss against the CPU's in float32: sums in another order, and 8 bits a factor.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.01}
NETWORKS = {
    "hpgr": {},
    "hpgr, history rows through the mask": {"model__history_rows": "preference"},
    "hstu": {"model__name": "hstu"},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_auto_takes_the_device_and_bfloat16():
    device = choose_device("auto", "auto")
    assert device.device == torch.device("cuda", 0)
    assert device.precision == torch.bfloat16


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_stages_train_as_on_the_cpu(name, precision, project):
    # Without dropout, which draws other numbers on another device.
    changes = NETWORKS[name] | {"model__dropout": 0.0}
    expected = train_both(parameters(**changes, **both("float32", "precision")))
    found = train_both(
        parameters(**changes, **both("cuda", "device"), **both(precision, "precision"))
    )
    for stage, row in expected.items():
        for key in (key for key in row if key.endswith("loss")):
            assert found[stage][key] == pytest.approx(row[key], rel=TOLERANCE[precision])


def test_the_sampled_loss_trains_with_negatives_drawn_on_the_device(project):
    changes = both("cuda", "device") | both("bfloat16", "precision")
    row = train_both(parameters(finetune__loss="sampled", **changes))["finetune"]
    # 128 negatives and the target, far from a perfect and from a hopeless answer.
    assert 0 < row["retrieval_loss"] < 20


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_a_stopped_run_goes_on_as_if_it_had_not(stage, project, monkeypatch):
    """Dropout is on: the device's random state belongs to the checkpoint."""
    cfg = parameters(**both("cuda", "device"), **both("float32", "precision"))
    pretrain(cfg)
    stage(cfg)
    expected = last_row(stage.__name__)
    plain, asked = TrainingWindows.batch, []

    def stopping(self, *args):
        asked.append(args)
        if len(asked) == 5:  # step 3; the estimate of memory takes two
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingWindows, "batch", stopping)
        with pytest.raises(Stopped):
            stage(cfg)
    torch.cuda.manual_seed(99)  # what is drawn next must come from the checkpoint
    stage(cfg)
    found = last_row(stage.__name__)
    assert len(asked) == 5
    assert found["step"] == expected["step"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_a_run_stopped_there_goes_on_on_the_cpu(project, monkeypatch):
    """With `auto` for both, as the benchmark's cells have it."""
    cfg = parameters(**both("auto", "device", "precision"), finetune__steps=6)
    pretrain(cfg)
    plain, asked = TrainingWindows.batch, []

    def stopping(self, *args):
        asked.append(args)
        if len(asked) == 4:  # step 2; the estimate of memory takes two
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingWindows, "batch", stopping)
        with pytest.raises(Stopped):
            finetune(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finetune(cfg)
    assert last_row("finetune")["step"] == 6
    metrics = json.loads((HERE.finetuned / "metrics.json").read_text())
    assert metrics["trained_on"].startswith("cuda:0 (")
    assert metrics["trained_on"].endswith(", bfloat16; cpu, float32")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_scorer_on_the_device_answers_as_on_the_cpu(name, project):
    train_both(parameters(**NETWORKS[name]))
    torch.set_float32_matmul_precision("highest")  # training on the CPU lowered it
    log = log_with_categories()
    users = np.arange(log.meta.num_users)
    asked = histories(log, users, log.user_offsets[1:], np.full(len(users), 2 * 10**9), 20)
    offsets = np.arange(len(users) + 1) * 5
    items = np.random.default_rng(0).integers(2, log.meta.num_items, offsets[-1])
    scorers = [Scorer.load(HERE.finetuned, device) for device in ("cpu", "cuda")]
    plain, device = ([s.retrieve(asked), s.rank(asked, offsets, items)] for s in scorers)
    for want, got in zip(plain, device, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    (anchor, weight), (other, heavy) = (s.explain(asked, offsets, items) for s in scorers)
    same = anchor == other
    assert (~same).sum() <= 0.01 * same.size  # nearly equal cosines may change places
    np.testing.assert_allclose(heavy[same], weight[same], atol=1e-4)
