"""Reference outputs of HSTU from two independent implementations, as a small test fixture.

The same random weights and the same three users go through (a) Meta's own research code and
(b) RecTools, and, as a check of the description in tests/fixtures/README.md, through the formula
written plainly in numpy (float64). The fixture is written only if all three agree to 1e-5.
Neither peer is a dependency of the project; run this in an environment of its own:

    python3.11 -m venv peer
    peer/bin/pip install 'rectools[torch]==0.19.0' torch==2.13.0 fbgemm-gpu-cpu==1.8.0 safetensors
    git clone https://github.com/facebookresearch/generative-recommenders
    git -C generative-recommenders checkout 2e81fab69a497fb5e24cd23569adf1e78070e4ec
    PYTHONPATH=generative-recommenders peer/bin/python benchmarks/hstu_reference.py

Reads: nothing. Writes: tests/fixtures/hstu_reference.safetensors (or the path given).

Shape legend: B users, T events of all users together, L events of one user, N padded length,
D width, H heads, K query/key width per head, V value width per head.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fbgemm_gpu  # noqa: F401  (registers the jagged operators that Meta's code calls)
import numpy as np
import torch
from generative_recommenders.research.modeling.sequential.embedding_modules import (
    LocalEmbeddingModule,
)
from generative_recommenders.research.modeling.sequential.features import (
    movielens_seq_features_from_row,
)
from generative_recommenders.research.modeling.sequential.hstu import HSTU
from generative_recommenders.research.modeling.sequential.input_features_preprocessors import (
    LearnablePositionalEmbeddingInputFeaturesPreprocessor,
)
from generative_recommenders.research.modeling.sequential.output_postprocessors import (
    L2NormEmbeddingPostprocessor,
)
from generative_recommenders.research.rails.similarities.dot_product_similarity_fn import (
    DotProductSimilarity,
)
from rectools.models.nn.item_net import IdEmbeddingsItemNet, SumOfEmbeddingsConstructor
from rectools.models.nn.transformers.hstu import STULayers
from rectools.models.nn.transformers.net_blocks import LearnableInversePositionalEncoding
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone
from safetensors.torch import save_file

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "hstu_reference.safetensors"
DIM, BLOCKS, HEADS, D_QK, D_V = 12, 2, 2, 6, 6
MAX_HISTORY, MAX_OUTPUT = 16, 3
PADDED = MAX_HISTORY + MAX_OUTPUT
LENGTHS = (5, 12, 16)
VOCABULARY = 32  # 0 is padding; histories use 2..31
TIME_BUCKETS = 128
EPS = 1e-6
TOLERANCE = 1e-5

Arrays = dict[str, np.ndarray]


def make_weights(rng: np.random.Generator) -> Arrays:
    """Weights far larger than an initialisation, so that every term moves the output visibly."""

    def normal(std: float, *shape: int) -> np.ndarray:
        return rng.normal(0.0, std, shape).astype(np.float32)

    weights = {
        "item_embedding": normal(0.3, VOCABULARY, DIM),
        "position_embedding": normal(0.5, PADDED, DIM),
    }
    weights["item_embedding"][0] = 0.0
    for i in range(BLOCKS):
        weights |= {
            f"block.{i}.uvqk": normal(0.4, DIM, 2 * HEADS * (D_V + D_QK)),
            f"block.{i}.output.weight": normal(0.3, DIM, HEADS * D_V),
            f"block.{i}.output.bias": normal(0.2, DIM),
            f"block.{i}.position_bias": normal(1.0, 2 * PADDED - 1),
            f"block.{i}.time_bias": normal(1.0, TIME_BUCKETS + 1),
        }
    return weights


def make_inputs(rng: np.random.Generator) -> Arrays:
    """Three histories whose gaps run from zero (ties) over seconds and hours to months."""
    scales = np.array([0, 0, 0, 1, 30, 600, 7_200, 86_400, 10 * 86_400, 60 * 86_400])
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    items, timestamps, request_time = [], [], []
    # The last user asks in the very second of the last event, the others later.
    for length, wait in zip(LENGTHS, (45, 97 * 86_400, 0), strict=True):
        gaps = (rng.choice(scales, length) * rng.uniform(0.5, 1.5, length)).astype(np.int64)
        times = 956_703_932 + rng.integers(0, 90_000_000) + np.cumsum(gaps)
        timestamps.append(times)
        request_time.append(times[-1] + wait)
        items.append(rng.integers(2, VOCABULARY, length))
    return {
        "input.item_ids": np.concatenate(items).astype(np.int64),
        "input.offsets": offsets.astype(np.int64),
        "input.timestamps": np.concatenate(timestamps).astype(np.int64),
        "input.request_time": np.array(request_time, dtype=np.int64),
    }


def users(inputs: Arrays) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """One (item ids, timestamps, request time) per user."""
    bounds = inputs["input.offsets"][1:-1]
    ids = np.split(inputs["input.item_ids"], bounds)
    times = np.split(inputs["input.timestamps"], bounds)
    return list(zip(ids, times, inputs["input.request_time"].tolist(), strict=True))


def copy_into(parameter: torch.Tensor, value: np.ndarray) -> None:
    if tuple(parameter.shape) != value.shape:
        raise ValueError(f"parameter has shape {tuple(parameter.shape)}, weights {value.shape}")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(value.copy()))


def run_meta(weights: Arrays, inputs: Arrays) -> Arrays:
    """Meta's research HSTU, fed through its own MovieLens batch builder."""
    embedding = LocalEmbeddingModule(num_items=VOCABULARY - 1, item_embedding_dim=DIM)
    model = HSTU(
        max_sequence_len=MAX_HISTORY,
        max_output_len=MAX_OUTPUT,
        embedding_dim=DIM,
        num_blocks=BLOCKS,
        num_heads=HEADS,
        linear_dim=D_V,
        attention_dim=D_QK,
        normalization="rel_bias",
        linear_config="uvqk",
        linear_activation="silu",
        linear_dropout_rate=0.2,
        attn_dropout_rate=0.0,
        embedding_module=embedding,
        similarity_module=DotProductSimilarity(),
        input_features_preproc_module=LearnablePositionalEmbeddingInputFeaturesPreprocessor(
            max_sequence_len=PADDED, embedding_dim=DIM, dropout_rate=0.2
        ),
        output_postproc_module=L2NormEmbeddingPostprocessor(embedding_dim=DIM, eps=EPS),
        verbose=False,
    ).eval()
    copy_into(embedding._item_emb.weight, weights["item_embedding"])
    copy_into(model._input_features_preproc._pos_emb.weight, weights["position_embedding"])
    captured: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(model._hstu._attention_layers):
        copy_into(layer._uvqk, weights[f"block.{i}.uvqk"])
        copy_into(layer._o.weight, weights[f"block.{i}.output.weight"])
        copy_into(layer._o.bias, weights[f"block.{i}.output.bias"])
        copy_into(layer._rel_attn_bias._pos_w, weights[f"block.{i}.position_bias"])
        copy_into(layer._rel_attn_bias._ts_w, weights[f"block.{i}.time_bias"])

        def keep(_layer, _args, kwargs, result, i=i):
            if i == 0:
                captured["input"] = kwargs["x"].clone()
            captured[f"block.{i}"] = result[0].clone()

        layer.register_forward_hook(keep, with_kwargs=True)

    def pad(rows: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.pad(r, (0, MAX_HISTORY - len(r))) for r in rows]))

    ids, times, request = zip(*users(inputs), strict=True)
    row = {
        "history_lengths": torch.tensor(LENGTHS),
        "historical_ids": pad(ids),
        "historical_ratings": pad([np.ones_like(r) for r in ids]),
        "historical_timestamps": pad(times),
        "target_ids": torch.full((len(ids),), 2),
        "target_ratings": torch.ones(len(ids), dtype=torch.int64),
        "target_timestamps": torch.tensor(request),
    }
    features, _, _ = movielens_seq_features_from_row(row, "cpu", MAX_OUTPUT)
    with torch.no_grad():
        final = model(
            past_lengths=features.past_lengths,
            past_ids=features.past_ids,
            past_embeddings=model.get_item_embeddings(features.past_ids),
            past_payloads=features.past_payloads,
        )
    captured["normalized"] = torch.cat([final[u, :n] for u, n in enumerate(LENGTHS)])
    return {f"meta.{name}": value.numpy() for name, value in captured.items()}


def run_rectools(weights: Arrays, inputs: Arrays) -> Arrays:
    """RecTools' HSTU backbone, one user at a time.

    RecTools pads on the left and numbers positions from the newest event back. Reversing the
    first L rows of the position table gives the event at position p the vector p, as in Meta's.
    """
    item_ids = IdEmbeddingsItemNet(DIM, VOCABULARY, 0.0)
    backbone = TransformerTorchBackbone(
        n_heads=HEADS,
        dropout_rate=0.2,
        item_model=SumOfEmbeddingsConstructor(VOCABULARY, [item_ids]),
        pos_encoding_layer=LearnableInversePositionalEncoding(
            True, PADDED, DIM, use_scale_factor=True
        ),
        transformer_layers=STULayers(
            n_blocks=BLOCKS,
            n_factors=DIM,
            n_heads=HEADS,
            linear_hidden_dim=D_V,
            attention_dim=D_QK,
            session_max_len=PADDED,
            relative_time_attention=True,
            relative_pos_attention=True,
            epsilon=EPS,
        ),
        similarity_module=DistanceSimilarityModule(distance="cosine"),
    ).eval()
    copy_into(item_ids.ids_emb.weight, weights["item_embedding"])
    captured: dict[str, list[torch.Tensor]] = {}
    length = 0
    for i, layer in enumerate(backbone.transformer_layers.stu_blocks):
        copy_into(layer.uvqk_proj, weights[f"block.{i}.uvqk"])
        copy_into(layer.output_mlp.weight, weights[f"block.{i}.output.weight"])
        copy_into(layer.output_mlp.bias, weights[f"block.{i}.output.bias"])
        copy_into(layer.rel_attn.pos_weights, weights[f"block.{i}.position_bias"])
        copy_into(layer.rel_attn.time_weights, weights[f"block.{i}.time_bias"])

        def keep(_layer, args, result, i=i):
            if i == 0:
                captured.setdefault("input", []).append(args[0][0, -length:].clone())
            captured.setdefault(f"block.{i}", []).append(result[0, -length:].clone())

        layer.register_forward_hook(keep)

    for ids, times, request in users(inputs):
        length = len(ids)
        positions = weights["position_embedding"].copy()
        positions[:length] = positions[:length][::-1]
        copy_into(backbone.pos_encoding_layer.pos_emb.weight, positions)
        batch = {
            "x": torch.from_numpy(np.pad(ids, (PADDED - length, 0))[None]),
            "unix_ts": torch.from_numpy(
                np.pad(np.append(times, request), (PADDED - length, 0), mode="edge")[None]
            ),
        }
        with torch.no_grad():
            scores = backbone(batch)
        captured.setdefault("scores", []).append(scores[0, -length:])
    return {f"rectools.{name}": torch.cat(parts).numpy() for name, parts in captured.items()}


def plain_hstu(weights: Arrays, inputs: Arrays) -> Arrays:
    """The formula of tests/fixtures/README.md, event by event, float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def layer_norm(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), EPS)

    out: dict[str, list[np.ndarray]] = {}
    for ids, times, request in users(inputs):
        row_time = np.append(times[1:], request)
        x = w["item_embedding"][ids] * np.sqrt(DIM) + w["position_embedding"][: len(ids)]
        out.setdefault("input", []).append(x)
        for b in range(BLOCKS):
            widths = np.cumsum([HEADS * D_V, HEADS * D_V, HEADS * D_QK])
            u, v, q, k = np.split(silu(layer_norm(x) @ w[f"block.{b}.uvqk"]), widths, axis=-1)
            a = np.zeros_like(v)
            for i in range(len(ids)):
                for j in range(i + 1):
                    seconds = max(1, abs(int(row_time[i] - times[j])))
                    bucket = min(int(np.log(seconds) / 0.301), TIME_BUCKETS)
                    bias = w[f"block.{b}.position_bias"][PADDED - 1 - (i - j)]
                    bias += w[f"block.{b}.time_bias"][bucket]
                    for h in range(HEADS):
                        qk, vs = slice(h * D_QK, (h + 1) * D_QK), slice(h * D_V, (h + 1) * D_V)
                        a[i, vs] += silu(q[i, qk] @ k[j, qk] + bias) / PADDED * v[j, vs]
            x = x + (u * layer_norm(a)) @ w[f"block.{b}.output.weight"].T
            x = x + w[f"block.{b}.output.bias"]
            out.setdefault(f"block.{b}", []).append(x)
        out.setdefault("normalized", []).append(unit(x))
        out.setdefault("scores", []).append(unit(x) @ unit(w["item_embedding"]).T)
    return {name: np.concatenate(parts) for name, parts in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the HSTU reference fixture.")
    parser.add_argument("path", nargs="?", type=Path, default=FIXTURE)
    path = parser.parse_args().path
    rng = np.random.default_rng(20)
    weights, inputs = make_weights(rng), make_inputs(rng)
    peers = run_meta(weights, inputs) | run_rectools(weights, inputs)
    plain = plain_hstu(weights, inputs)
    for name, value in peers.items():
        error = float(np.abs(value - plain[name.split(".", 1)[1]]).max())
        print(f"{name:24} {value.shape!s:10} max |peer - formula| = {error:.1e}")
        if not error < TOLERANCE:
            raise SystemExit(f"{name}: peer and formula differ by {error}; nothing written")
    config = {
        "dim": DIM,
        "num_blocks": BLOCKS,
        "num_heads": HEADS,
        "d_qk": D_QK,
        "d_v": D_V,
        "max_history": MAX_HISTORY,
        "padded_length": PADDED,
        "layer_norm_eps": EPS,
        "meta": "facebookresearch/generative-recommenders@2e81fab69a497fb5e24cd23569adf1e78070e4ec",
        "rectools": "RecTools 0.19.0",
    }
    tensors = {
        name: torch.from_numpy(value.copy()) for name, value in (weights | inputs | peers).items()
    }
    # One metadata entry: the order of several is not fixed, and the file should be reproducible.
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
