"""The ways in which histories are read for an answer, against those of training and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_leaks import CPU, catalogue, random_histories, settings, trained_looking

import hpgr.model.discounting
import hpgr.model.hpgr
from hpgr.data.histories import Histories
from hpgr.largest import largest
from hpgr.model.discounting import Pasts
from hpgr.model.hstu import history_tiles
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def asked(lengths, *, visible=None):
    """Histories, one without an event among them, and candidates of each at its request time."""
    full = random_histories(lengths, seed=1)
    offsets = np.insert(full.offsets, 1, full.offsets[1])
    times = np.insert(full.request_time, 1, full.request_time[0])
    rows = (full.item, full.action, full.timestamp, full.session)
    histories = Histories(offsets, *rows, times)
    count = np.array([3, 2, *[3] * (len(lengths) - 1)])
    seen = np.repeat(histories.length, count) if visible is None else visible
    items = np.arange(count.sum()) % 40 + 2
    bounds = np.concatenate([[0], count.cumsum()])
    placed = place_candidates(histories, bounds, items, seen, np.repeat(times, count), CPU)
    return pack(histories, CPU), placed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recent_window": 0, "candidate_window": 0},
        {"readout": False},
        {"preference": False},
        {"sessions": False, "side_features": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("visible", [None, np.array([9, 0, 30, 0, 0, 1, 17, 4, 2, 2, 2])])
def test_reading_whole_segments_equals_reading_square_tiles(changes, visible, monkeypatch):
    model = trained_looking(build(settings(**changes), catalogue(), ranking=True))
    packed, placed = asked([30, 17, 2], visible=visible)
    found, kinds = [], []

    def covered(*args, segments=None):
        tiles = history_tiles(*args, segments=segments and whole)
        kinds.append(tiles.rows is not None)
        return tiles

    monkeypatch.setattr(hpgr.model.hpgr, "history_tiles", covered)
    for whole in (True, False):
        kinds.clear()
        with torch.inference_mode():
            reading = model.read(packed, rows=packed.newest)
            judged = model.judge(packed, reading, placed)
        assert any(kinds) == whole
        masks = [mask for mask in (reading.mask, judged.mask) if mask is not None]
        found.append(
            [reading.states, judged.logits, *(x for m in masks for x in (m.anchor, m.peak))]
        )
    assert len(found[0]) == (2 if changes == {"preference": False} else 6)
    for segments, square in zip(*found, strict=True):
        torch.testing.assert_close(segments, square, **CLOSE)


def test_tables_computed_before_change_no_reading():
    model = trained_looking(build(settings(), catalogue(), ranking=True))
    packed, placed = asked([12, 20])
    found = []
    with torch.inference_mode():
        for tables in (None, model.item_tables()):
            reading = model.read(packed, rows=packed.newest, tables=tables)
            logits = model.judge(packed, reading, placed).logits
            found.append((reading.states, reading.items, logits))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_queries_and_keys_of_a_block_are_those_of_its_projection():
    block = trained_looking(build(settings(), catalogue(), ranking=True)).blocks[0]
    rows = torch.randn(9, 16)
    u, v, q, k = block.project(rows)
    for one, other in zip((*block.queries(rows), *block.keys(rows)), (u, q, k, v), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("waste", [0, 100], ids=["running sums", "each past by itself"])
@pytest.mark.parametrize("dtype", [torch.float64])
def test_discounted_products_equal_a_loop_over_the_rows(waste, dtype, monkeypatch):
    monkeypatch.setattr(hpgr.model.discounting, "WASTE", waste)
    packed = pack(random_histories([40, 1, 7], seed=2), CPU)
    ends, rates = torch.tensor([0, 3, 40, 41, 45, 48]), torch.tensor([0.9, 1.0], dtype=dtype)
    first = [0, 0, 0, 40, 41, 41]
    x, y = torch.randn(48, 3, dtype=dtype), torch.randn(48, 2, dtype=dtype)
    expected = torch.zeros(2, 6, 3, 2, dtype=dtype)
    for r, rate in enumerate(rates):
        for p, end in enumerate(ends.tolist()):
            for row in range(first[p], end):
                expected[r, p] += rate ** (end - 1 - row) * torch.outer(x[row], y[row])
    pasts = Pasts(packed, ends)
    assert (pasts.row_PL is None) == (waste == 0)
    torch.testing.assert_close(pasts.products(x, y, rates), expected)


@given(
    columns=st.integers(1, 700),
    num=st.integers(1, 12),
    seed=st.integers(0, 100),
    values=st.sampled_from([3, 10**6]),
)
@examples(max_examples=60, deadline=None)
def test_the_largest_are_those_of_a_sort(columns, num, seed, values):
    num = min(num, columns)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (3, columns), generator=generator).float()
    column, value = largest(scores, num)
    expected = scores.sort(1, descending=True).values[:, :num]
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    torch.testing.assert_close(scores.gather(1, column), value, rtol=0, atol=0)
    assert all(len(set(row)) == num for row in column.tolist())
