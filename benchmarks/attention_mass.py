"""The share of attention that falls on inserted events, for `noise.py`.

The weights are those that the back end in use computes: values that are one at the place of their
event, and zero elsewhere, make its sum over keys the weights themselves. A weight counts by its
absolute value, since SiLU has a negative part; heads are summed, and blocks count alike.

Shape legend (suffixes of names): T history rows, Q queries (states or candidates), C candidates, H
heads, L places of the longest history, A anchors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.noisy_log import NoisyLog
from hpgr.data.histories import Histories, bounded, runs
from hpgr.evaluation.protocols import LabelledQueries
from hpgr.model.attention.entry import additive_attention
from hpgr.model.hstu import HSTU, HSTUBlock, history_tiles
from hpgr.model.packed import Packed, pack, place_candidates
from hpgr.model.scoring import Scorer

EVENTS_AT_A_TIME = 8192  # of histories whose weights are held


def masses(
    scorer: Scorer, noisy: NoisyLog, candidates: LabelledQueries, max_history: int
) -> dict[str, float]:
    """Means over the candidates whose query sees an inserted event.

    Returns:
        Shares of attention on inserted events, of the `candidates` and of the `states` that
        retrieval would ask with, and the `share` of these events among those seen, which even
        weights would give; of a network with anchors also the share of inserted events among the
        candidates' `anchors`. Empty for a network without HSTU's blocks.
    """
    layers = [b for b in getattr(scorer.model, "blocks", ()) if isinstance(b, HSTUBlock)]
    if not layers:
        return {}
    asked = noisy.asked(candidates)
    before = np.concatenate([[0], np.cumsum(noisy.inserted)])
    first = np.maximum(noisy.log.user_offsets[asked.user], asked.end - max_history)
    seeing = before[asked.end] > before[first]
    asked, first = asked.take(seeing), first[seeing]
    found: dict[str, list[np.ndarray]] = {}
    for part in bounded(asked.end - first, queries=len(asked), most=EVENTS_AT_A_TIME):
        offsets, rows = runs(first[part], asked.end[part] - first[part])
        histories = Histories.gather(noisy.log, offsets, rows, asked.request_time[part])
        noise_T = torch.from_numpy(noisy.inserted[rows])
        for name, one in looked_at(scorer, layers, histories, asked.take(part), noise_T).items():
            found.setdefault(name, []).append(one.numpy())
    return {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}


@torch.inference_mode()
def looked_at(
    scorer: Scorer,
    layers: Sequence[HSTUBlock],
    histories: Histories,
    asked: LabelledQueries,
    noise_T: Tensor,
) -> dict[str, Tensor]:
    """Compute what `masses` averages, [C] each; candidates see the whole history of their query."""
    count = np.diff(asked.offsets)
    query_C = torch.from_numpy(np.repeat(np.arange(len(asked)), count))
    packed = pack(histories, scorer.device)
    candidates = place_candidates(
        histories,
        asked.offsets,
        asked.item,
        np.repeat(histories.length, count),
        np.repeat(asked.request_time, count),
        scorer.device,
    )
    query_T = torch.from_numpy(np.repeat(np.arange(len(asked)), histories.length))
    noise_QL = torch.zeros(len(asked), int(histories.length.max()))
    noise_QL[query_T, packed.position] = noise_T.float()
    with watched(layers[-1:], packed, every_row=isinstance(scorer.model, HSTU)) as of_states:
        reading = scorer.read_rows(packed)
    with watched(layers, packed) as of_candidates:
        mask = scorer.model.judge(packed, reading, candidates).mask
    length_Q = torch.from_numpy(histories.length)
    found = {
        "candidates": on_noise(of_candidates, noise_QL[query_C]),
        "states": on_noise(of_states, noise_QL)[query_C],
        "share": (noise_QL.sum(1) / length_Q)[query_C],
    }
    if mask is not None:
        there_CA = mask.anchor >= 0
        found["anchors"] = (noise_T[mask.anchor] & there_CA).sum(1) / there_CA.sum(1)
    return found


@contextmanager
def watched(
    layers: Sequence[HSTUBlock], packed: Packed, *, every_row: bool = False
) -> Iterator[list[Tensor]]:
    """Note the weights of each `attend` of some blocks by place in the history.

    Args:
        layers: the blocks.
        packed: the histories that they read.
        every_row: they serve every row, of which the newest are of interest.

    Yields:
        For each so far, in order, the absolute weights summed over heads, [Q, L].
    """
    seen: list[Tensor] = []
    place_TL = functional.one_hot(packed.position).float()

    def watch(block: HSTUBlock) -> None:
        def attend(x_QD, u_QE, q_QHd, k_KHd, v_KHd, tiles, length, weight_NGS=None):
            asking_QHd, own = q_QHd, tiles
            if every_row:
                newest = packed.newest
                asking_QHd = q_QHd[newest]
                own = history_tiles(packed, packed.readers(newest), tiles.size)
            weight_QHL = additive_attention(
                asking_QHd,
                k_KHd,
                place_TL[:, None].expand(-1, k_KHd.shape[1], -1),
                own,
                position_bias=block.position_bias,
                time_bias=block.time_bias,
                weight=weight_NGS,
            )
            seen.append(weight_QHL.abs().sum(1))
            return HSTUBlock.attend(
                block, x_QD, u_QE, q_QHd, k_KHd, v_KHd, tiles, length, weight_NGS
            )

        block.attend = attend  # type: ignore[method-assign]

    for layer in layers:
        watch(layer)
    try:
        yield seen
    finally:
        for layer in layers:
            del layer.attend


def on_noise(weights: Sequence[Tensor], noise_QL: Tensor) -> Tensor:
    """Share of the weights [Q, L] of each block that lies on `noise_QL`, a mean over blocks."""
    shares = [(weight_QL * noise_QL).sum(1) / weight_QL.sum(1) for weight_QL in weights]
    return torch.stack(shares).mean(0)
