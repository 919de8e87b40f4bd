"""In the tests every call of a network is checked for the shapes that its annotations give."""

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from test_leaks import catalogue, random_histories, settings

from hpgr.model.attention.cover import build_tiles
from hpgr.model.attention.entry import additive_attention
from hpgr.model.interface import build
from hpgr.model.packed import pack, place_candidates
from hpgr.model.ranking_head import RankingHead

CPU = torch.device("cpu")


def attended(q, k, v):
    row = torch.arange(len(k))
    tiles = build_tiles(row * 0, row + 1, len(k), size=8)
    return additive_attention(
        q, k, v, tiles, position_bias=torch.zeros(4), time_bias=torch.zeros(129)
    )


def test_right_shapes_pass():
    assert attended(torch.ones(5, 2, 3), torch.ones(5, 2, 3), torch.ones(5, 2, 7)).shape == (
        5,
        2,
        7,
    )


@pytest.mark.parametrize(
    "shapes",
    [
        ((5, 2, 3), (5, 2, 4), (5, 2, 3)),
        ((5, 2, 3), (5, 2, 3), (6, 2, 3)),
        ((5, 6), (5, 6), (5, 6)),
    ],
)
def test_a_wrong_shape_is_refused(shapes):
    with pytest.raises(jaxtyping.TypeCheckError):
        attended(*(torch.ones(shape) for shape in shapes))


def test_a_wrong_type_of_number_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        attended(*(torch.ones(5, 2, 3, dtype=torch.int64) for _ in range(3)))


@pytest.mark.parametrize("name", ["hpgr", "hstu", "mtgr"])
def test_a_network_s_inner_calls_are_checked(name):
    histories = random_histories([5, 3], seed=0)
    model, packed = build(settings(name=name), catalogue(), ranking=True), pack(histories, CPU)
    model(packed, None)
    with pytest.raises(jaxtyping.TypeCheckError):
        model(replace(packed, first=packed.first[:-1]), None)


def test_the_ranking_head_refuses_states_of_other_candidates():
    histories = random_histories([5, 3], seed=0)
    offsets, item, seen = np.array([0, 1, 2]), np.array([2, 3]), np.array([5, 3])
    placed = place_candidates(histories, offsets, item, seen, histories.request_time, CPU)
    head = RankingHead(16, 50, 6)
    with pytest.raises(jaxtyping.TypeCheckError):
        head(torch.ones(2, 16), torch.ones(3, 16), pack(histories, CPU), placed)
