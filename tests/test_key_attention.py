"""Attention over gathered queries against the whole matrix: sums, and every gradient."""

import pytest
import torch
from gathered import Problem
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import parameters, train_both, write_project

from hpgr.model.attention import bells
from hpgr.model.attention.cover import HIDDEN
from hpgr.model.attention.entry import additive_attention, choose
from hpgr.model.attention.key_tiles import GROUP, LEAST_GROUP, build_key_tiles
from hpgr.model.attention.reference import laid_out

torch.set_num_threads(1)
EXACT = {"rtol": 1e-9, "atol": 1e-11}

masks = {
    "lengths": st.lists(st.integers(0, 60), min_size=1, max_size=5),
    "seed": st.integers(0, 1000),
    "per_user": st.sampled_from([None, 1, 4]),
    "num_anchors": st.integers(1, 6),
    "sigma": st.sampled_from([0.3, 1.0, 2.0, 5.0]),
    "window": st.sampled_from([0, 1, 7, 100]),
    "size": st.sampled_from([4, 8, 16]),
    "group": st.sampled_from([None, 1, 5]),
}


@settings(max_examples=60, deadline=None)
@given(**masks, exponential=st.booleans())
def test_equals_the_whole_matrix(
    lengths, seed, per_user, num_anchors, sigma, window, size, group, exponential
):
    problem = Problem(lengths, seed, per_user=per_user, num_anchors=num_anchors)
    with torch.no_grad():  # exp of a large score would hide the rest
        for factor in problem.factors[:2]:
            factor.mul_(0.3)
    tiles, weight = problem.tiles(sigma=sigma, window=window, size=size, group=group)
    position, time = problem.biases
    out = additive_attention(
        *problem.factors, tiles,
        position_bias=position, time_bias=time, weight=weight, exponential=exponential,
    )  # fmt: skip
    expected = problem.dense(problem.weights(sigma=sigma, window=window), exponential=exponential)
    for got, want in zip(problem.gradients(out), problem.gradients(expected), strict=True):
        torch.testing.assert_close(got, want, **EXACT)


@settings(max_examples=30, deadline=None)
@given(**masks)
def test_weights_are_those_of_the_mask(
    lengths, seed, per_user, num_anchors, sigma, window, size, group
):
    problem = Problem(lengths, seed, per_user=per_user, num_anchors=num_anchors)
    tiles, weight = problem.tiles(sigma=sigma, window=window, size=size, group=group)
    expected = problem.weights(sigma=sigma, window=window)
    torch.testing.assert_close(laid_out(tiles, weight), expected, **EXACT)
    # Each pair is listed once, and a block of keys only for the queries that touch it.
    seen = tiles.bucket != HIDDEN
    once = laid_out(tiles, torch.ones_like(tiles.bucket, dtype=torch.long))
    assert int(seen.sum()) == int(once.sum())
    blocks = -(-problem.num_keys // size)
    touched = torch.nn.functional.pad(expected, (0, blocks * size - problem.num_keys)) > 0
    filled = int((tiles.rows < len(problem.first)).sum())
    assert filled == int(touched.view(len(expected), blocks, size).any(2).sum())


def test_some_rows_of_weights_at_a_time_are_the_same(monkeypatch):
    results = []
    for rows in (1 << 15, 7):
        monkeypatch.setattr(bells, "ROWS_AT_A_TIME", rows)
        problem = Problem([40, 3, 25], 3)
        _, weight = problem.tiles(sigma=2.0, window=4)
        upstream = torch.arange(weight.numel(), dtype=weight.dtype).cos().view_as(weight)
        results.append((weight, *torch.autograd.grad(weight, problem.peak, upstream)))
    torch.testing.assert_close(*results, **EXACT)


def test_a_query_that_sees_nothing_touches_nothing():
    """Between two histories, inside a block of keys."""
    problem = Problem([5, 9], 0, per_user=1)
    problem.end[1] = problem.first[1]
    tiles, _ = problem.tiles(sigma=2.0, window=7)
    assert 1 not in tiles.rows.tolist()[0] and 0 in tiles.rows.tolist()[0]


def test_dense_lays_the_same_list_out():
    problem = Problem([40, 3, 25], 3)
    position, time = problem.biases
    results = []
    for name in ("dense", "auto"):
        tiles, weight = problem.tiles(sigma=2.0, window=4)
        out = additive_attention(
            *problem.factors, tiles,
            position_bias=position, time_bias=time, weight=weight, name=name,
        )  # fmt: skip
        results.append(problem.gradients(out))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **EXACT)


def test_without_weights_and_times_every_listed_pair_counts():
    problem = Problem([30, 9], 1)
    query, key = problem.visible.nonzero().T
    pair = torch.unique(key // 8 * len(problem.first) + query)
    tiles, _ = build_key_tiles(
        pair % len(problem.first), pair // len(problem.first), problem.first, problem.end, 39,
        size=8,
    )  # fmt: skip
    with torch.no_grad():
        problem.biases[1].fill_(0)
    out = additive_attention(
        *problem.factors, tiles, position_bias=problem.biases[0], time_bias=problem.biases[1]
    )
    torch.testing.assert_close(out, problem.dense(None), **EXACT)


def test_bfloat16_products_stay_near_float32():
    problem = Problem([50, 20], 2, dtype=torch.float32, width=16)
    position, time = problem.biases
    results = []
    for enabled in (False, True):
        tiles, weight = problem.tiles(sigma=2.0, window=4, size=16)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = additive_attention(
                *problem.factors, tiles, position_bias=position, time_bias=time, weight=weight
            )
        results.append(problem.gradients(out.float()))
    for want, got in zip(*results, strict=True):
        assert (got - want).norm() < 0.02 * want.norm()


def test_pairs_of_a_query_do_not_grow_with_the_history():
    """Three bells touch two blocks each at most, and a window of 8 two."""
    for length in (512, 4096):
        problem = Problem([length], 0, dtype=torch.float32)
        tiles, _ = problem.tiles(sigma=2.0, window=8, size=16)
        assert int((tiles.rows < length).sum()) <= 8 * length


@pytest.mark.parametrize(
    ("lengths", "per_user", "group"), [([640], None, GROUP), ([640, 640], 2, LEAST_GROUP)]
)
def test_few_queries_take_small_tiles(lengths, per_user, group):
    problem = Problem(lengths, 0, per_user=per_user)
    tiles, _ = problem.tiles(sigma=1.0, window=2, size=16)
    assert tiles.rows.shape[1] == group


def test_short_histories_are_dense_and_the_reason_says_so():
    assert choose("cpu", 20).name == "dense" and not choose("cpu", 20).sparse
    assert choose("cpu", 20).reason == "histories of at most 20 events, sparse from 256 on"
    assert choose("cpu", 8192).name == "tiles" and choose("cpu", 8192).sparse
    assert "8192 events on cpu" in choose("cpu", 8192).reason


def test_training_says_once_how_masks_are_computed_and_why(tmp_path, monkeypatch, capsys):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    train_both(parameters())
    said = "attention: dense (histories of at most 20 events, sparse from 256 on)"
    assert capsys.readouterr().out.count(said) == 1
