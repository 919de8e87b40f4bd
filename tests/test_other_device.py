"""Training and scoring on a device apart from the CPU: nothing is left behind on either side."""

import contextlib
import json
import signal

import numpy as np
import pytest
import torch
from pretend_device import ELSEWHERE, Elsewhere, PretendDevice
from training_runs import both, last_row, log_with_categories, parameters, train_both, write_project

import hpgr.training.finetune
import hpgr.training.pretrain
from hpgr.data.batches import TrainingWindows
from hpgr.data.histories import histories
from hpgr.model.attention import select
from hpgr.model.scoring import Scorer
from hpgr.training.device import Device
from hpgr.training.loop import Stopped
from hpgr.training.table_optimizer import TableAdamW
from hpgr.workspace import HERE

NETWORKS = {
    "hpgr": {},
    "hpgr, history rows through the mask": {"model__history_rows": "preference"},
    "hpgr with sampled loss": {"finetune__loss": "sampled"},
    "hstu": {"model__name": "hstu"},
}


@pytest.fixture(autouse=True)
def no_inference_mode(monkeypatch):
    """Tensors of inference mode take no wrapper; without gradients the operations are the same."""
    for name in ("retrieve", "retrieve_rows", "rank_rows", "explain", "anchors", "read"):
        plain = torch.no_grad()(getattr(Scorer, name).__wrapped__)
        monkeypatch.setattr(Scorer, name, plain)


@contextlib.contextmanager
def training_on(device, monkeypatch):
    """Stages train on `device`, whatever this machine has."""
    chosen = Device(device, torch.float32, 0, 1)
    with monkeypatch.context() as patch:
        for stage in (hpgr.training.pretrain, hpgr.training.finetune):
            patch.setattr(stage, "choose_device", lambda *_: chosen)
            # The fused kernel asks for a device that it knows.
            patch.setattr(
                stage, "TableAdamW", lambda *a, **kw: TableAdamW(*a, **kw | {"fused": False})
            )
        yield patch


def train_on(device, cfg, monkeypatch):
    """Both stages on `device`."""
    with training_on(device, monkeypatch):
        return train_both(cfg)


def test_the_second_device_refuses_what_a_real_one_refuses():
    with PretendDevice():
        there = torch.arange(4.0).to(ELSEWHERE)
        assert isinstance(there, Elsewhere) and there.device == ELSEWHERE
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(4)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        assert (there.cpu().numpy() == np.arange(4)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_both_stages_train_and_score_there_as_on_the_cpu(name, tmp_path, monkeypatch):
    """Square tiles on the CPU, segments and other chunks there; dropout would draw other masks."""
    # Products of another shape round otherwise, which decides between anchors that nearly tie.
    monkeypatch.setattr(select, "FEW_QUERIES", 1 << 20)
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = parameters(**NETWORKS[name], **both(4, "steps"), model__dropout=0.0)
    expected = train_on(torch.device("cpu"), cfg, monkeypatch)
    with PretendDevice():
        found = train_on(ELSEWHERE, cfg, monkeypatch)
    for stage, row in expected.items():
        for key in (key for key in row if key.endswith("loss")):
            assert found[stage][key] == pytest.approx(row[key], rel=1e-3)
    log = log_with_categories()
    users = np.arange(log.meta.num_users)
    asked = histories(log, users, log.user_offsets[1:], np.full(len(users), 2 * 10**9), 20)
    offsets, items = np.arange(len(users) + 1) * 3, np.arange(3 * len(users)) % 20 + 2
    scorer = Scorer.load(HERE.finetuned)
    plain = [scorer.retrieve(asked), scorer.rank(asked, offsets, items)]
    with PretendDevice():
        model, added = scorer.model.to(ELSEWHERE), (scorer.calibration, scorer.additions)
        there = Scorer(model, ELSEWHERE, scorer.max_history, *added)
        answers = [there.retrieve(asked), there.rank(asked, offsets, items)]
        there.explain(asked, offsets, items)
    for got, want in zip(answers, plain, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_run_stopped_there_goes_on_here(tmp_path, monkeypatch):
    """As one that was never stopped; its output names both devices."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = parameters(model__name="hstu", **both(4, "steps"), model__dropout=0.0)
    expected = train_on(torch.device("cpu"), cfg, monkeypatch)["finetune"]
    plain, calls = TrainingWindows.batch, []

    def stopping(self, *args):
        calls.append(args)
        if len(calls) == 4:  # step 2; the estimate of memory takes two
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *args)

    with PretendDevice(), training_on(ELSEWHERE, monkeypatch) as patch:
        patch.setattr(TrainingWindows, "batch", stopping)
        with pytest.raises(Stopped):
            hpgr.training.finetune.finetune(cfg)
    with training_on(torch.device("cpu"), monkeypatch):
        hpgr.training.finetune.finetune(cfg)
    found = last_row("finetune")
    assert found["step"] == expected["step"] == 4
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    trained = json.loads((HERE.finetuned / "metrics.json").read_text())
    assert trained["trained_on"] == "meta, float32; cpu, float32"
