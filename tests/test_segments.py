"""One tile a segment against square tiles: the same sums and gradients, in float32."""

import numpy as np
import pytest
import torch
from training_runs import log_with_categories, parameters

import hpgr.model.attention.cover
import hpgr.model.hstu
import hpgr.model.placement
import hpgr.model.session_encoder
import hpgr.model.trunk
from hpgr.data.batches import TrainingWindows
from hpgr.model.attention.cover import HIDDEN, NUM_TIME_BUCKETS, build_tiles
from hpgr.model.attention.entry import additive_attention
from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.placement import at_a_time
from hpgr.model.trunk import MaskedItemModel

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def ranges(lengths, per_segment=None):
    """Ranges of users' own rows or, with `per_segment`, of as many candidates of each user."""
    generator = torch.Generator().manual_seed(0)
    first, last, start = [], [], 0
    for length in lengths:
        count = length if per_segment is None else per_segment
        ends = torch.randint(0, length + 1, (count,), generator=generator).sort().values
        first += [start] * count
        last += (ends + start).tolist() if per_segment else range(start + 1, start + length + 1)
        start += length
    return torch.tensor(first), torch.tensor(last), start


@pytest.fixture
def any_waste(monkeypatch):
    monkeypatch.setattr(hpgr.model.attention.cover, "SEGMENT_WASTE", 10**6)


@pytest.mark.parametrize(
    ("lengths", "candidates"),
    [([30, 1, 17, 64], None), ([30, 1, 17, 64], 5), ([9, 0, 0, 40], 3), ([0, 12], 4), ([5], None)],
)
def test_segments_equal_square_tiles(lengths, candidates, any_waste):
    generator = torch.Generator().manual_seed(1)
    first, last, num_keys = ranges(lengths, candidates)
    time = torch.randint(0, 10**7, (num_keys,), generator=generator).cumsum(0)
    asked = torch.randint(0, 10**8, (len(first),), generator=generator)
    q = torch.randn(len(first), 2, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(num_keys, 2, 8, generator=generator, requires_grad=True) for _ in range(2))
    position = torch.randn(20, generator=generator, requires_grad=True)
    bucket = torch.randn(NUM_TIME_BUCKETS, generator=generator, requires_grad=True)
    upstream = torch.randn(len(first), 2, 8, generator=generator)
    results = []
    for segments in (False, True):
        tiles = build_tiles(
            first, last, num_keys, size=8, query_time=asked, key_time=time,
            query_position=last if candidates else None, segments=segments,
        )  # fmt: skip
        assert (tiles.rows is not None) == segments
        # Each visible pair once, in either cover.
        assert int((tiles.bucket != HIDDEN).sum()) == int((last - first).sum())
        out = additive_attention(q, k, v, tiles, position_bias=position, time_bias=bucket)
        inputs = (q, k, v, position, bucket)
        results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for square, whole in zip(*results, strict=True):
        torch.testing.assert_close(whole, square, **CLOSE)


def test_ranges_that_are_no_segments_keep_square_tiles(any_waste):
    """A window that moves with its query does not begin where its own rows begin."""
    row = torch.arange(50)
    tiles = build_tiles((row - 5).clamp_min(0), row + 1, 50, size=8, segments=True)
    assert tiles.rows is None


def test_a_long_segment_among_short_ones_keeps_square_tiles():
    first, last, num_keys = ranges([500] + [3] * 300)
    tiles = build_tiles(first, last, num_keys, size=16, segments=True)
    assert tiles.rows is None
    even, ends, num_keys = ranges([50] * 20)
    assert build_tiles(even, ends, num_keys, size=16, segments=True).rows is not None


@pytest.mark.parametrize("name", ["hpgr", "hstu", "mtgr", "pretraining"])
def test_a_network_gives_the_same_over_segments(name, monkeypatch, any_waste):
    log = log_with_categories()
    cfg = parameters(model__dropout=0.0, model__num_blocks=2)
    torch.manual_seed(0)
    catalogue = Catalogue.of(log)
    if name == "pretraining":
        network = MaskedItemModel(cfg.model, catalogue, mim_blocks=1)
    else:
        cfg.model.name, cfg.model.cross = name, "fold_in"
        network = build(cfg.model, catalogue, ranking=True)
    windows = TrainingWindows(
        log, max_history=20, batch_tokens=300, num_candidates=4, random_windows=False, seed=0
    )
    batch = windows.batch(windows.plan(0)[0], 0, 0)
    packed = pack(batch.histories, torch.device("cpu"))
    rows = batch.candidates
    placed = place_candidates(
        batch.histories, rows.offsets, rows.item, rows.visible, rows.time, torch.device("cpu")
    )
    second = torch.from_numpy(np.arange(len(packed.item)) % 3 == 0)
    arguments = (packed, second) if name == "pretraining" else (packed, placed)
    results, built = [], []

    def square(*args, **kwargs):
        return build_tiles(*args, **{**kwargs, "segments": False})

    def counted(*args, **kwargs):
        built.append(build_tiles(*args, **{**kwargs, "segments": True}))
        return built[-1]

    for make in (square, counted):
        for module in (hpgr.model.trunk, hpgr.model.hstu, hpgr.model.session_encoder):
            monkeypatch.setattr(module, "build_tiles", make)
        outputs = [x for x in network(*arguments) if x is not None]
        network.zero_grad()
        sum((x * torch.arange(x.numel()).view_as(x).cos()).sum() for x in outputs).backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append([*outputs, *gradients])
    assert built and all(tiles.rows is not None for tiles in built)
    for square, whole in zip(*results, strict=True):
        torch.testing.assert_close(whole, square, rtol=1e-3, atol=1e-4)


def test_a_chunk_is_bounded_by_its_bytes_beyond_the_cpu():
    limit = hpgr.model.placement.ACCELERATOR_BYTES
    assert at_a_time(torch.device("cpu"), cpu=32, bytes_each=1) == 32
    device = torch.device("cuda")
    assert at_a_time(device, cpu=32, bytes_each=limit // 100) == 100
    assert at_a_time(device, cpu=32, bytes_each=10 * limit) == 1
