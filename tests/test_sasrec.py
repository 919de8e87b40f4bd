"""SASRec and eSASRec against RecTools: same weights, same outputs; and softmax at any scores.

The fixture holds RecTools' weights and outputs; benchmarks/sasrec_reference.py makes it.
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
from hpgr.model.attention.cover import build_tiles
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.packed import pack
from hpgr.model.sasrec import SelfAttention

FIXTURE = Path(__file__).parent / "fixtures" / "sasrec_reference.safetensors"
BLOCK = "transformer_layers.transformer_blocks"
SHARED = {
    "item_model.item_net_blocks.0.ids_emb": "item",
    "pos_encoding_layer.pos_emb": "position",
    "transformer_layers.last_layernorm": "norm",
    "multi_head_attn.in_proj_": "attention.qkv.",
    "multi_head_attn.out_proj": "attention.output",
}
OURS = {  # by model: RecTools' part of a weight's name and ours
    "sasrec": SHARED
    | {
        "q_layer_norm": "query_norm",
        "ff_layer_norm": "mixed_norm",
        "feed_forward.ff_linear_1": "hidden",
        "feed_forward.ff_linear_2": "mixed",
    },
    "esasrec": SHARED
    | {
        "layer_norm_1": "attention_norm",
        "layer_norm_2": "mixed_norm",
        "gating_linear_1": "attention_gate",
        "gating_linear_2": "mixed_gate",
        "feed_forward.ff_linear_1": "hidden_gate",
        "feed_forward.ff_linear_2": "mixed",
        "feed_forward.ff_linear_3": "hidden",
    },
}


def our_name(model, name):
    for theirs, ours in ({BLOCK: "blocks"} | OURS[model]).items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="module")
def reference():
    with safe_open(FIXTURE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


@pytest.fixture(scope="module", params=["sasrec", "esasrec"])
def compared(request, reference):
    """Outputs of our network with RecTools' weights, and RecTools' own."""
    tensors, sizes = reference
    start = f"{request.param}.weight."
    weights = {
        our_name(request.param, name.removeprefix(start)): value
        for name, value in tensors.items()
        if name.startswith(start)
    }
    (num_items, dim), num_positions = weights["item.weight"].shape, len(weights["position.weight"])
    settings = SimpleNamespace(
        name=request.param,
        dim=dim,
        max_history=num_positions - 1,
        num_blocks=sizes["num_blocks"],
        num_heads=sizes["num_heads"],
        dropout=0.1,
        tile=8,
        readout=False,
    )
    catalogue = Catalogue(num_items, 1, 1, torch.zeros(num_items + 1), torch.zeros(0), 1800)
    model = build(settings, catalogue, ranking=False).eval()
    model.load_state_dict(weights, strict=False)
    missing = set(dict(model.named_parameters())) ^ set(weights)
    assert all(name.startswith("click.") for name in missing)  # the ranking head is not theirs
    ours = {}
    model.blocks[0].register_forward_pre_hook(lambda _, given: ours.update(input=given[0]))
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *call, i=i: ours.update({f"block.{i}": call[2]}))
    item = tensors["input.item_ids"].numpy()
    histories = Histories(
        offsets=tensors["input.offsets"].numpy(),
        item=item,
        action=np.zeros(len(item)),
        timestamp=np.arange(len(item)),
        session=np.zeros(len(item)),
        request_time=np.full(3, len(item)),
    )
    with torch.no_grad():
        ours["states"] = model(pack(histories, torch.device("cpu")), None).states
    return ours, {name: tensors[f"{request.param}.output.{name}"] for name in ours}


@pytest.mark.parametrize("place", ["input", "block.0", "block.1", "states"])
def test_outputs_equal_rectools(compared, place):
    ours, theirs = compared
    torch.testing.assert_close(ours[place], theirs[place], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_attention_equals_torch_whatever_its_scores(size):
    """Scores of 300 overflow exp in float32."""
    torch.manual_seed(0)
    attention, peer = SelfAttention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    peer.in_proj_weight, peer.in_proj_bias = attention.qkv.weight, attention.qkv.bias
    peer.out_proj = attention.output
    x, row = torch.randn(20, 8, requires_grad=True), torch.arange(20)
    with torch.no_grad():
        attention.qkv.weight[:16] *= size**0.5
    tiles = build_tiles(torch.zeros_like(row), row + 1, 20, size=8)
    hidden = torch.ones(20, 20, dtype=torch.bool).triu(1)
    found = attention(x, *attention.keys(x), tiles)
    expected = peer(x[None], x[None], x[None], attn_mask=hidden, need_weights=False)[0][0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    assert functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 1 - 1e-6


def test_an_event_of_great_length_moves_nothing_before_it():
    """It bounds the scores of those behind it alone, so that not even rounding tells of it."""
    torch.manual_seed(0)
    attention, row = SelfAttention(8, 2), torch.arange(20)
    tiles = build_tiles(torch.zeros_like(row), row + 1, 20, size=8)
    states = []
    for length in (1.0, 10.0):
        x = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)) * 10
        x[12] *= length
        states.append(attention(x, *attention.keys(x), tiles))
    assert torch.equal(states[0][:12], states[1][:12])
    assert states[1].isfinite().all()
