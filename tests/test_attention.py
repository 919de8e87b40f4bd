"""Tiles against the dense oracle: the same sums and the same gradients, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpgr.model.attention.cover import NUM_TIME_BUCKETS, build_tiles, time_bucket
from hpgr.model.attention.entry import additive_attention, softmax_attention
from hpgr.model.attention.reference import dense_attention

torch.set_num_threads(1)


def causal_ranges(lengths):
    first, end = [], []
    start = 0
    for length in lengths:
        first += [start] * length
        end += range(start + 1, start + length + 1)
        start += length
    return torch.tensor(first, dtype=torch.long), torch.tensor(end, dtype=torch.long)


def random_problem(lengths, seed, heads=2, dim=5):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)

    def rand(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    gaps = torch.randint(0, 10**7, (total,), generator=generator)
    q, k, v = (rand(total, heads, dim) for _ in range(3))
    return q, k, v, rand(20), rand(NUM_TIME_BUCKETS), gaps.cumsum(0)


def visible_matrix(first, end, num_keys):
    key = torch.arange(num_keys)
    return (key >= first[:, None]) & (key < end[:, None])


lengths_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    lengths=lengths_strategy,
    seed=st.integers(0, 1000),
    exponential=st.booleans(),
    segments=st.booleans(),
)
def test_causal_tiles_equal_dense(lengths, seed, exponential, segments):
    q, k, v, position, time, stamps = random_problem(lengths, seed)
    first, end = causal_ranges(lengths)
    tiles = build_tiles(
        first, end, len(k), size=8, query_time=stamps + 60, key_time=stamps, segments=segments
    )
    out = additive_attention(
        q, k, v, tiles, position_bias=position, time_bias=time, exponential=exponential
    )
    row = torch.arange(len(q))
    distance = (row[:, None] - row).abs().clamp_max(len(position) - 1)
    bias = position[distance] + time[time_bucket((stamps + 60)[:, None] - stamps)]
    visible = visible_matrix(first, end, len(k))
    expected = dense_attention(q, k, v, visible=visible, bias=bias, exponential=exponential)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-8)

    upstream = torch.randn_like(out)
    inputs = (q, k, v, position, time)
    got = torch.autograd.grad(out, inputs, upstream)
    want = torch.autograd.grad(expected, inputs, upstream)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(lengths=lengths_strategy, seed=st.integers(0, 1000))
def test_candidates_with_weights_equal_dense(lengths, seed):
    """Queries apart from the keys, each with its own end and multiplicative weights."""
    _, k, v, position, time, stamps = random_problem(lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    first, end = [], []
    start = 0
    for length in lengths:
        ends = torch.randint(0, length + 1, (3,), generator=generator).sort().values + start
        first += [start] * 3
        end += ends.tolist()
        start += length
    first, end = torch.tensor(first), torch.tensor(end)
    q = torch.randn(len(first), 2, 5, dtype=torch.float64, generator=generator).requires_grad_()
    query_time = torch.randint(0, 10**8, (len(first),), generator=generator)
    tiles = build_tiles(
        first, end, len(k), size=8, query_time=query_time, key_time=stamps, query_position=end
    )
    shape = tiles.bucket.shape
    weight = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
    out = additive_attention(q, k, v, tiles, position_bias=position, time_bias=time, weight=weight)

    full = torch.zeros(len(first) + 8, len(k) + 8, dtype=torch.float64)
    for tile, (a, b) in enumerate(zip(tiles.query_block, tiles.key_block, strict=True)):
        full[a * 8 : a * 8 + 8, b * 8 : b * 8 + 8] = weight[tile]
    full = full[: len(first), : len(k)]
    distance = (end[:, None] - torch.arange(len(k))).clamp(0, len(position) - 1)
    bias = position[distance] + time[time_bucket(query_time[:, None] - stamps)]
    visible = visible_matrix(first, end, len(k))
    expected = dense_attention(q, k, v, visible=visible, bias=bias, weight=full)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-8)
    upstream = torch.randn_like(out)
    inputs = (q, k, v, position, time, weight)
    got = torch.autograd.grad(out, inputs, upstream, materialize_grads=True)
    want = torch.autograd.grad(expected, inputs, upstream, materialize_grads=True)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_softmax_equals_torch(causal, segments):
    """Against torch's scaled_dot_product_attention, one sequence at a time."""
    lengths = [3, 17, 9]
    q, k, v, *_ = random_problem(lengths, 0)
    first, end = causal_ranges(lengths)
    if not causal:
        ends = torch.tensor(lengths).cumsum(0)
        end = torch.repeat_interleave(ends, torch.tensor(lengths))
    tiles = build_tiles(first, end, len(k), size=8, segments=segments)
    out = softmax_attention(q, k, v, tiles, q.new_zeros(1))
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(x[part].transpose(0, 1) for x in (q, k, v)), is_causal=causal, scale=1.0
        )
        torch.testing.assert_close(out[part], expected.transpose(0, 1))
        start += length


def test_a_query_without_keys_gets_zeros():
    first = torch.zeros(2, dtype=torch.long)
    end = torch.tensor([0, 1])
    tiles = build_tiles(first, end, 1, size=8, query_position=end)
    q, k = torch.ones(2, 1, 4), torch.ones(1, 1, 4)
    assert softmax_attention(q, k, k, tiles, torch.zeros(1))[0].abs().sum() == 0


def test_time_bucket_is_the_published_formula():
    seconds = torch.tensor([0, 1, 2, 60, 3600, 86400, 10**9, -60])
    expected = [
        int(torch.floor(torch.tensor(max(1, abs(int(s))) + 0.0).log() / 0.301)) for s in seconds
    ]
    assert time_bucket(seconds).tolist() == [min(128, e) for e in expected]


def test_only_visible_tiles_are_listed():
    """Two users of one tile each never meet: two tiles, not three."""
    first, end = causal_ranges([8, 8])
    tiles = build_tiles(first, end, 16, size=8)
    assert list(zip(tiles.query_block.tolist(), tiles.key_block.tolist(), strict=True)) == [
        (0, 0),
        (1, 1),
    ]
