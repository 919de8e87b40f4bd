"""HSTU against the official research code and RecTools: same weights, same outputs.

The fixture holds their outputs; how it was made stands in tests/fixtures/README.md.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from hpgr.data.histories import Histories
from hpgr.model.catalogue import Catalogue
from hpgr.model.hstu import HSTU
from hpgr.model.packed import pack

FIXTURE = Path(__file__).parent / "fixtures" / "hstu_reference.safetensors"
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference():
    with safe_open(FIXTURE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def outputs(reference):
    """Our HSTU with the reference's weights: (embedded input, output of each block)."""
    torch.set_float32_matmul_precision("highest")  # a test that trained may have lowered it
    tensors, _ = reference
    num_items, dim = tensors["item_embedding"].shape
    n = tensors["position_embedding"].shape[0]
    settings = SimpleNamespace(
        dim=dim,
        max_history=n - 11,
        num_blocks=2,
        num_heads=2,
        dropout=0.2,
        position_bias=True,
        time_bias=True,
        tile=8,
        readout=False,
    )
    catalogue = Catalogue(num_items, 1, 1, torch.zeros(num_items + 1), torch.zeros(0), 1800)
    model = HSTU(settings, catalogue, ranking=False).eval()
    weights = {
        "item.weight": tensors["item_embedding"],
        "position.weight": tensors["position_embedding"],
    }
    for i in range(2):
        block = f"block.{i}."
        weights |= {
            f"blocks.{i}.uvqk": tensors[block + "uvqk"],
            f"blocks.{i}.output.weight": tensors[block + "output.weight"],
            f"blocks.{i}.output.bias": tensors[block + "output.bias"],
            # Theirs runs from the farthest key to the nearest; ours is by distance.
            f"blocks.{i}.position_bias": tensors[block + "position_bias"][:n].flip(0),
            f"blocks.{i}.time_bias": tensors[block + "time_bias"],
        }
    model.load_state_dict(weights, strict=False)
    missing = set(dict(model.named_parameters())) - set(weights)
    assert all(name.startswith("click.") for name in missing)  # the ranking head is not theirs
    assert model.padded_length == n
    seen = []
    for block in model.blocks:
        original = block.attend

        def spy(x, *rest, original=original):
            seen.append(x)
            return original(x, *rest)

        block.attend = spy
    histories = Histories(
        offsets=tensors["input.offsets"].numpy(),
        item=tensors["input.item_ids"].numpy(),
        action=np.zeros(len(tensors["input.item_ids"])),
        timestamp=tensors["input.timestamps"].numpy(),
        session=np.zeros(len(tensors["input.item_ids"])),
        request_time=tensors["input.request_time"].numpy(),
    )
    with torch.no_grad():
        states, items, _ = model(pack(histories, torch.device("cpu")), None)
    return {"input": seen[0], "block.0": seen[1], "block.1": states, "items": items}


@pytest.mark.parametrize("peer", ["meta", "rectools"])
@pytest.mark.parametrize("place", ["input", "block.0", "block.1"])
def test_block_outputs_equal_the_peer(reference, outputs, peer, place):
    torch.testing.assert_close(outputs[place], reference[0][f"{peer}.{place}"], **TOLERANCE)


def test_normalised_states_equal_meta(reference, outputs):
    states = functional.normalize(outputs["block.1"], dim=-1, eps=1e-6)
    torch.testing.assert_close(states, reference[0]["meta.normalized"], **TOLERANCE)


def test_scores_equal_rectools(reference, outputs):
    scores = (
        functional.normalize(outputs["block.1"], dim=-1)
        @ functional.normalize(outputs["items"], dim=-1).T
    )
    torch.testing.assert_close(scores, reference[0]["rectools.scores"], **TOLERANCE)
