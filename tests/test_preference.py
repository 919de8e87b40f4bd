"""Preference signals and the Gaussian mask against brute force over all pairs."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_leaks import CPU, catalogue, random_histories
from test_leaks import settings as leak_settings
from torch.nn import functional

from hpgr.model.attention import cover
from hpgr.model.attention.cover import build_tiles
from hpgr.model.attention.key_tiles import SIZE
from hpgr.model.attention.reference import laid_out
from hpgr.model.attention.select import Selector
from hpgr.model.hpgr import HPGR
from hpgr.model.packed import pack, place_candidates
from hpgr.model.preference import PreferenceSignals


def problem(lengths, seed, dim=6):
    generator = torch.Generator().manual_seed(seed)
    first, end, start = [], [], 0
    for length in lengths:
        first += [start] * length
        end += range(start + 1, start + length + 1)
        start += length
    rows = torch.randn(start, dim, generator=generator)
    return rows, torch.tensor(first), torch.tensor(end)


def masked(
    selector, signals, rows, first, end, *, window, tile=8, sparse=True, query=None, segments=False
):
    """The mask of queries at `first` .. `end` of the keys `rows`."""
    place = torch.arange(len(rows))
    position = None if query is None else end
    covered = partial(build_tiles, first, end, len(rows), size=tile, query_position=position)
    whole = None
    if segments:
        whole = covered(segments=True)
        assert whole.rows is not None
    anchors = selector(rows if query is None else query, rows, first, end, place, whole)
    return signals(
        *anchors, first, end, len(rows), window=window, tiles=None if sparse else covered(),
        query_time=None, key_time=None, query_position=position, whole=whole,
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    seed=st.integers(0, 100),
    sigma=st.sampled_from([0.7, 2.0, 4.0]),
    num_anchors=st.integers(1, 6),
    window=st.integers(0, 20),
    way=st.sampled_from(["sparse", "square", "segments"]),
)
def test_mask_equals_brute_force(lengths, seed, sigma, num_anchors, window, way):
    rows, first, end = problem(lengths, seed)
    selector, signals = Selector(6, 6, 5, num_anchors=num_anchors), PreferenceSignals(sigma)
    with torch.no_grad():
        selector.query.weight.add_(torch.randn(5, 6) * 0.3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cover, "SEGMENT_WASTE", 10**6)
            mask = masked(
                selector, signals, rows, first, end, window=window,
                sparse=way == "sparse", segments=way == "segments",
            )  # fmt: skip
    unit_q = functional.normalize(rows @ selector.query.weight.detach().T, dim=-1)
    unit_k = functional.normalize(rows @ selector.key.weight.detach().T, dim=-1)
    expected = torch.zeros(len(rows), len(rows))
    for i in range(len(rows)):
        low, high = int(first[i]), int(end[i])
        cosine = [(float(unit_q[i] @ unit_k[j]), j) for j in range(low, high)]
        best = sorted(cosine, reverse=True)[:num_anchors]
        for j in range(low, high):
            heights = [0.0]
            for similarity, anchor in best:
                if abs(j - anchor) <= int(3 * sigma):
                    peak = math.exp(8 * (similarity - best[0][0]))
                    heights.append(peak * math.exp(-((j - anchor) ** 2) / (2 * sigma**2)))
            expected[i, j] = 1.0 if j >= high - window else max(heights)
    found = laid_out(mask.tiles, mask.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_query_computes_only_the_blocks_that_its_mask_touches():
    """One long history: a constant number of blocks a query, not all before it."""
    rows, first, end = problem([640], 0)
    selector, signals = Selector(6, 6, 6, num_anchors=2), PreferenceSignals(1.0)
    mask = masked(selector, signals, rows, first, end, window=4)
    blocks = 640 // SIZE
    touched = (laid_out(mask.tiles, mask.weight).view(640, blocks, SIZE) > 0).any(2)
    assert int((mask.tiles.rows < 640).sum()) == int(touched.sum())
    assert int(touched.sum(1).max()) <= 2 * 2 + 2


def test_history_and_candidates_have_windows_of_their_own():
    windows = {"recent_window": 0, "candidate_window": 7}
    network = HPGR(leak_settings(max_history=300, **windows), catalogue())
    histories = random_histories([30], seed=0)
    packed = pack(histories, CPU)
    placed = place_candidates(
        histories, np.array([0, 1]), np.array([3]), np.array([30]), histories.request_time, CPU
    )
    reading = network.read(packed, rows=packed.newest)
    rows, candidate = reading.mask, network.judge(packed, reading, placed).mask
    full = laid_out(candidate.tiles, candidate.weight)
    assert (full[0, -7:] == 1).all() and full[0, -8] < 1
    assert (laid_out(rows.tiles, rows.weight)[0, -7:] < 1).any()  # no window, bells alone


def test_the_peak_receives_a_gradient():
    rows, first, end = problem([40], 1)
    selector, signals = Selector(6, 6, 6, num_anchors=2), PreferenceSignals(2.0)
    mask = masked(selector, signals, rows, first, end, window=2)
    mask.weight.sum().backward()
    assert selector.query.weight.grad.abs().sum() > 0
    assert signals.log_sharpness.grad.abs() > 0


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("place", [0, 1])  # of its history among the keys: at the border of a block
@pytest.mark.parametrize("count", [0, 1])
def test_a_query_without_history_has_no_anchor(count, place, sparse):
    selector, signals = Selector(6, 6, 6, num_anchors=2), PreferenceSignals(1.0)
    first, end = torch.tensor([place, place]), torch.tensor([place, place + count])
    rows, query = torch.randn(3, 6), torch.randn(2, 6)
    mask = masked(selector, signals, rows, first, end, window=2, sparse=sparse, query=query)
    assert (mask.anchor[0] == -1).all()
    assert (mask.anchor[1] >= 0).sum() == count
