"""Preference signals and the Gaussian mask against brute force over all pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hpgr.model.preference import PreferenceSignals, select_anchors


def problem(lengths, seed, dim=6):
    generator = torch.Generator().manual_seed(seed)
    first, end, start = [], [], 0
    for length in lengths:
        first += [start] * length
        end += range(start + 1, start + length + 1)
        start += length
    rows = torch.randn(start, dim, generator=generator)
    return rows, torch.tensor(first), torch.tensor(end)


def full_matrix(mask, num_queries, num_keys, size):
    """The mask's tiles laid out as one Q x K matrix, hidden pairs at zero."""
    blocks = [-(-n // size) * size for n in (num_queries, num_keys)]
    full = torch.zeros(blocks)
    for tile, (a, b) in enumerate(
        zip(mask.tiles.query_block.tolist(), mask.tiles.key_block.tolist(), strict=True)
    ):
        seen = mask.tiles.bucket[tile] != 255
        full[a * size : (a + 1) * size, b * size : (b + 1) * size] = mask.weight[tile] * seen
    return full[:num_queries, :num_keys]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    seed=st.integers(0, 100),
    sigma=st.sampled_from([0.7, 2.0, 4.0]),
    num_anchors=st.integers(1, 6),
    window=st.integers(1, 20),
)
def test_mask_equals_brute_force(lengths, seed, sigma, num_anchors, window):
    rows, first, end = problem(lengths, seed)
    signals = PreferenceSignals(6, num_anchors=num_anchors, sigma=sigma, recent_window=window)
    with torch.no_grad():
        signals.query.weight.add_(torch.randn(6, 6) * 0.3)
        mask = signals(
            rows, rows, first, end,
            size=8, query_time=None, key_time=None, query_position=None,
        )  # fmt: skip
    unit_q = functional.normalize(rows @ signals.query.weight.detach().T, dim=-1)
    unit_k = functional.normalize(rows @ signals.key.weight.detach().T, dim=-1)
    expected = torch.zeros(len(rows), len(rows))
    for i in range(len(rows)):
        low, high = int(first[i]), int(end[i])
        cosine = [(float(unit_q[i] @ unit_k[j]), j) for j in range(low, high)]
        best = sorted(cosine, reverse=True)[:num_anchors]
        for j in range(low, high):
            heights = [0.0]
            for similarity, anchor in best:
                if abs(j - anchor) <= int(3 * sigma):
                    peak = 1 / (1 + math.exp(-(4 * similarity)))
                    heights.append(peak * math.exp(-((j - anchor) ** 2) / (2 * sigma**2)))
            expected[i, j] = 1.0 if j >= high - window else max(heights)
    torch.testing.assert_close(
        full_matrix(mask, len(rows), len(rows), 8), expected, rtol=1e-4, atol=1e-5
    )


def test_nothing_is_computed_where_the_mask_is_zero():
    """One long history: the tiles listed are those with a weight, and far fewer than all."""
    rows, first, end = problem([640], 0)
    signals = PreferenceSignals(6, num_anchors=2, sigma=1.0, recent_window=4)
    mask = signals(
        rows, rows, first, end, size=8, query_time=None, key_time=None, query_position=None
    )
    blocks = 640 // 8
    assert len(mask.tiles.query_block) < 0.4 * blocks * (blocks + 1) / 2
    full = full_matrix(mask, 640, 640, 8)
    assert (full.view(blocks, 8, blocks, 8).amax((1, 3)) > 0).sum() == len(mask.tiles.query_block)


@given(count=st.integers(1, 30), num=st.integers(1, 12), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_anchors_are_the_most_similar_visible_items(count, num, seed):
    rows, first, end = problem([count, 3], seed)
    unit = functional.normalize(rows, dim=-1)
    anchor = select_anchors(unit, unit, first, end, num)
    for i, picked in enumerate(anchor.tolist()):
        visible = list(range(int(first[i]), int(end[i])))
        wanted = sorted(visible, key=lambda j: -float(unit[i] @ unit[j]))[:num]
        assert [j for j in picked if j >= 0] == wanted
        assert picked.count(-1) == num - len(wanted)


def test_the_peak_receives_a_gradient():
    rows, first, end = problem([40], 1)
    signals = PreferenceSignals(6, num_anchors=2, sigma=2.0, recent_window=2)
    mask = signals(
        rows, rows, first, end, size=8, query_time=None, key_time=None, query_position=None
    )
    mask.weight.sum().backward()
    assert signals.query.weight.grad.abs().sum() > 0
    assert signals.sharpness.grad.abs() > 0


@pytest.mark.parametrize("count", [0, 1])
def test_a_query_without_history_has_no_anchor(count):
    signals = PreferenceSignals(6, num_anchors=2, sigma=1.0, recent_window=2)
    first, end = torch.tensor([0, 0]), torch.tensor([0, count])
    mask = signals(
        torch.randn(2, 6), torch.randn(3, 6), first, end,
        size=8, query_time=None, key_time=None, query_position=end,
    )  # fmt: skip
    assert (mask.anchor[0] == -1).all()
    assert (mask.anchor[1] >= 0).sum() == count
