"""Gradient norms in the curves: of the whole network and of the parts that it names."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_leaks import catalogue, random_histories, settings, trained_looking
from test_length import CPU, SCHEDULE
from torch import nn

from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.training.loop import gradient_norms, train

HELD = torch.device("cpu")


class Windows:
    """Two batches an epoch, which say by how much each weight's gradient is scaled."""

    batches_per_epoch = 2

    def plan(self, epoch):
        return [np.array([n]) for n in range(2)]

    def batch(self, numbers, epoch, index):
        return SimpleNamespace(target=np.array([3.0, 4.0], dtype=np.float32) * (index + 1))


class Line(nn.Module):
    """a . x, whose gradient is x."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(())) for _ in range(2))


def test_the_curves_hold_the_mean_norms_before_clipping(tmp_path):
    """Gradients are (3, 4) and (6, 8) in turn: norms 5 and 10, of the second weight 4 and 8."""
    model = Line()

    def loss(network, batch, epoch, index):
        x, y = batch.target.tolist()
        return {"loss": network.a * x + network.b * y}

    outcome = train(
        model, torch.optim.SGD(model.parameters(), lr=0.1), Windows(), loss=loss,
        validate=lambda: {"validation_score": 0.0}, device=CPU,
        schedule=replace(SCHEDULE, steps=4, validate_steps=2, clip_norm=0.01), scratch=tmp_path,
        name="finetune", watched={"second": [model.b]},
    )  # fmt: skip
    for row in outcome.curves:
        assert row["gradient_norm"] == pytest.approx(7.5)
        assert row["gradient_norm_second"] == pytest.approx(6)


def stepped(**changes):
    """A network after one backward pass through states and logits, and its peaks by module."""
    torch.manual_seed(0)
    model = trained_looking(build(settings(**changes), catalogue(), ranking=True)).train()
    peaks = {}

    def keep(name):
        def hook(module, inputs, mask):
            mask.peak.retain_grad()
            peaks.setdefault(name, []).append(mask.peak)

        return hook

    for name in ("row_signals", "candidate_signals"):
        if getattr(model, name, None) is not None:
            getattr(model, name).register_forward_hook(keep(name))
    histories = random_histories([30, 20], seed=3)
    placed = place_candidates(
        histories, np.array([0, 2, 4]), np.array([3, 4, 5, 6]), np.array([30, 30, 20, 20]),
        np.repeat(histories.request_time, 2), HELD,
    )  # fmt: skip
    output = model(pack(histories, HELD), placed)
    states = nn.functional.normalize(output.states, dim=-1)
    table = nn.functional.normalize(output.items, dim=-1)
    loss = (states @ table.T).logsumexp(1).sum() + output.logits.square().sum()
    loss.backward()
    return model, peaks


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"readout": True}, {"selectors", "signals", "readout"}),
        ({"readout": False}, {"selectors", "signals"}),
        ({"preference": False}, {"selectors", "readout"}),
        ({"name": "hstu"}, {"readout"}),
    ],
)
def test_every_part_that_a_network_has_learns(changes, parts):
    model, _ = stepped(**changes)
    norms = gradient_norms(model.watched_weights)
    assert set(norms) == {f"gradient_norm_{part}" for part in parts}
    assert all(norm > 0 for norm in norms.values())
    if "readout" in parts:
        squares = [
            w.grad.square().sum() for w in model.click.readout.parameters() if w.requires_grad
        ]
        assert norms["gradient_norm_readout"] == pytest.approx(float(sum(squares).sqrt()), rel=1e-5)


@pytest.mark.parametrize("readout", [True, False])
def test_the_height_of_each_peak_receives_a_gradient(readout):
    """Of the candidates' anchors and of the history rows'."""
    _, peaks = stepped(readout=readout)
    assert set(peaks) == {"row_signals", "candidate_signals"}
    for found in peaks.values():
        for peak in found:
            assert (peak.grad[peak > 0] != 0).float().mean() > 0.5
