"""bfloat16 under autocast: both stages train, and their losses are float32's within a tolerance."""

import math

import pytest
import torch
from torch.nn import functional
from training_runs import both, parameters, train_both, write_project

from hpgr.model.attention.cover import build_tiles
from hpgr.model.attention.entry import additive_attention, softmax_attention
from hpgr.training.losses import full_softmax, normalised, sampled_softmax

# bfloat16 keeps 8 bits of every factor of a product: 0.4 % each, less in a mean over many rows.
TOLERANCE = 0.01
STEPS = 8
NETWORKS = {
    "hpgr": {},
    "hpgr without ranking": {"finetune__ranking_weight": 0.0},
    "hpgr with sampled loss": {"finetune__loss": "sampled"},
    "hpgr, history rows through the mask": {"model__history_rows": "preference"},
    "hpgr, sparse": {"model__history_rows": "preference", "model__max_history": 300},
    "hstu": {"model__name": "hstu"},
    "mtgr": {"model__name": "mtgr"},
    "hstu without ranking": {"model__name": "hstu", "finetune__ranking_weight": 0.0},
    "hstu with sampled loss": {"model__name": "hstu", "finetune__loss": "sampled"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_stages_train_in_bfloat16_as_in_float32(name, tmp_path, monkeypatch):
    rows = {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        write_project(folder)
        monkeypatch.chdir(folder)
        changes = {**NETWORKS[name], **both(precision, "precision"), **both(STEPS, "steps")}
        rows[precision] = train_both(parameters(**changes))
    assert rows["float32"]["finetune"]
    for stage, expected in rows["float32"].items():
        found = rows["bfloat16"][stage]
        if not expected and not found:  # hstu has no stage 1
            continue
        losses = [key for key in expected if key.endswith("loss")]
        assert "loss" in losses and found.keys() == expected.keys()
        for key in losses:
            assert math.isfinite(found[key])
            assert found[key] == pytest.approx(expected[key], rel=TOLERANCE), (stage, key)
            # The same to the last digit would mean that bfloat16 was never in use.
            assert found[key] != expected[key]


def test_losses_are_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    states, items = (torch.randn(n, 16, generator=generator) for n in (600, 50))
    target = torch.randint(2, 50, (600,), generator=generator)
    negatives = torch.randint(2, 50, (600, 7), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        pair = normalised(states, items, 0.05)
        full = full_softmax(*pair, target, first_item=2)
        sampled = sampled_softmax(*pair, target, negatives)
    exact = normalised(states, items, 0.05)
    torch.testing.assert_close(full, full_softmax(*exact, target, first_item=2), rtol=0, atol=0)
    torch.testing.assert_close(sampled, sampled_softmax(*exact, target, negatives), rtol=0, atol=0)


@pytest.mark.parametrize(
    "types", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_attention_takes_factors_of_two_types_both_ways(types):
    """Normalised queries are float32 under autocast, values that come from a product are not."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(40, 2, 8, generator=generator) for _ in range(3))
    q, k = (functional.normalize(x, dim=-1) for x in (q, k))
    row = torch.arange(40)
    tiles = build_tiles(torch.zeros_like(row), row + 1, 40, size=16)
    bias = torch.zeros(40)
    upstream = torch.randn(40, 2, 8, generator=generator)
    gradients = {}
    for name, (first, second) in {"mixed": types, "exact": (torch.float32,) * 2}.items():
        factors = [
            x.to(t).requires_grad_() for x, t in zip((q, k, v), (first, first, second), strict=True)
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "mixed"):
            out = softmax_attention(*factors, tiles, bias)
            out = out + additive_attention(
                *factors, tiles, position_bias=bias, time_bias=torch.zeros(129)
            )
        gradients[name] = torch.autograd.grad((out.float() * upstream).sum(), factors)
        assert [g.dtype for g in gradients[name]] == [f.dtype for f in factors]
    for got, want in zip(gradients["mixed"], gradients["exact"], strict=True):
        assert (got.float() - want).norm() < 0.02 * want.norm()
