"""Reference outputs of SASRec and of eSASRec's LiGR layers from RecTools, as a small test fixture.

RecTools is not a dependency of the project; run this in an environment of its own:

    python3.11 -m venv peer
    peer/bin/pip install torch==2.13.0
    peer/bin/pip install 'rectools[torch]==0.19.0' safetensors
    peer/bin/python benchmarks/sasrec_reference.py

The fixture holds RecTools' weights under its own names, three histories and what comes out of them:
the input of the first block, each block's output and the states. Dropout is off.
Reads: nothing. Writes: tests/fixtures/sasrec_reference.safetensors (or the path given).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rectools.models.nn.item_net import IdEmbeddingsItemNet, SumOfEmbeddingsConstructor
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.net_blocks import (
    LearnableInversePositionalEncoding,
    TransformerLayersBase,
)
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone
from safetensors.torch import save_file

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "sasrec_reference.safetensors"
DIM, BLOCKS, HEADS = 8, 2, 2
LENGTHS = (1, 9, 16)
PADDED = 17  # one more than the longest history: every history has padding before it
VOCABULARY = 20  # 0 is padding, 1 is unknown to us; histories use 2..19
LAYERS: dict[str, type[TransformerLayersBase]] = {
    "sasrec": SASRecTransformerLayers,
    "esasrec": LiGRLayers,
}


def make_backbone(layers: type[TransformerLayersBase]) -> TransformerTorchBackbone:
    """RecTools' network with weights far larger than an initialisation, so that all of them show.

    Keys are masked where the history is padded. RecTools' own default lets events attend to the
    padding before them, whose number depends on the batch; packed rows have none.
    """
    items = IdEmbeddingsItemNet(DIM, VOCABULARY, 0.0)
    backbone = TransformerTorchBackbone(
        n_heads=HEADS,
        dropout_rate=0.1,
        item_model=SumOfEmbeddingsConstructor(VOCABULARY, [items]),
        pos_encoding_layer=LearnableInversePositionalEncoding(True, PADDED, DIM),
        transformer_layers=layers(n_blocks=BLOCKS, n_factors=DIM, n_heads=HEADS, dropout_rate=0.1),
        similarity_module=DistanceSimilarityModule(distance="cosine"),
        use_key_padding_mask=True,
    ).eval()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(torch.randn_like(weight) * 0.4)
    return backbone


def outputs(
    backbone: TransformerTorchBackbone, histories: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """RecTools' outputs for all histories, rows of one after those of the other.

    RecTools numbers positions from the newest event back. Reversing the first L rows of the table
    gives the event at position p the vector p.
    """
    table = backbone.pos_encoding_layer.pos_emb.weight
    original = table.detach().clone()
    blocks = [*backbone.transformer_layers.transformer_blocks]
    found: dict[str, list[torch.Tensor]] = {}
    for items in histories:
        own = slice(PADDED - len(items), None)

        def keep(block, arguments, result, own=own):
            if block is blocks[0]:
                found.setdefault("input", []).append(arguments[0][0, own].clone())
            name = f"block.{blocks.index(block)}"
            found.setdefault(name, []).append(result[0, own].clone())

        hooks = [block.register_forward_hook(keep) for block in blocks]
        with torch.no_grad():
            table.copy_(original)
            table[: len(items)] = original[: len(items)].flip(0)
            embedded = backbone.item_model.get_all_embeddings()
            padded = torch.nn.functional.pad(items, (PADDED - len(items), 0))[None]
            states = backbone.encode_sessions({"x": padded}, embedded)[0, own]
        found.setdefault("states", []).append(states)
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        table.copy_(original)
    return {name: torch.cat(parts) for name, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=FIXTURE)
    path = parser.parse_args().path
    torch.manual_seed(20)
    items = torch.randint(2, VOCABULARY, (sum(LENGTHS),))
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    tensors = {"input.item_ids": items, "input.offsets": offsets}
    for name, layers in LAYERS.items():
        backbone = make_backbone(layers)
        weights = {key: value.clone() for key, value in backbone.state_dict().items()}
        computed = outputs(backbone, list(items.split(LENGTHS)))
        tensors |= {f"{name}.weight.{key}": value for key, value in weights.items()}
        tensors |= {f"{name}.output.{key}": value for key, value in computed.items()}
        print(name, {key: tuple(value.shape) for key, value in computed.items()})
    config = {"num_blocks": BLOCKS, "num_heads": HEADS, "rectools": "RecTools 0.19.0"}
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
