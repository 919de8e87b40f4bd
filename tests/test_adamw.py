"""AdamW beside torch's: the same weights and state to the bit, and no compiler imported."""

import subprocess
import sys

import pytest
import torch

from hpgr.training.adamw import AdamW

TRAINING = """
import sys
import torch
from hpgr.training.adamw import AdamW
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weight], lr=0.1, fused={fused})
for _ in range(2):
    optimizer.zero_grad()
    weight.square().sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert weight.lt(1).all()
assert "torch._dynamo" not in sys.modules
"""


def trained(kind, fused):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 5, generator=generator)) for _ in range(3)]
    groups = [{"params": weights[:1], "lr": 0.01}, {"params": weights[1:]}]
    optimizer = kind(groups, lr=0.1, betas=(0.9, 0.98), weight_decay=0.1, fused=fused)
    for n in range(6):
        optimizer.zero_grad(set_to_none=True)
        used = weights[: 2 + n % 2]  # the last one has no gradient at every second step
        torch.cat([w.sin().flatten() for w in used]).sum().backward()
        optimizer.step()
        if n == 3:
            optimizer.load_state_dict(optimizer.state_dict())
    moments = [v for state in optimizer.state_dict()["state"].values() for v in state.values()]
    return [*weights, *moments]


@pytest.mark.parametrize("fused", [True, None])
def test_weights_and_state_are_those_of_torchs_own(fused):
    ours, torchs = trained(AdamW, fused), trained(torch.optim.AdamW, fused)
    assert len(ours) == len(torchs)
    assert all(torch.equal(one, other) for one, other in zip(ours, torchs, strict=True))


@pytest.mark.parametrize("fused", [True, None])
def test_a_training_does_not_import_the_compiler(fused):
    code = TRAINING.format(fused=fused)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
