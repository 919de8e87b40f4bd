"""Anchors against a search of all visible keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpgr.model.attention import select as module
from hpgr.model.attention.select import select, select_anchors


def vectors(count, seed, *, distinct=None, width=6):
    """Unit vectors; with `distinct`, that many different ones, so that similarities tie."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(distinct or count, width, generator=generator)
    if distinct:
        x = x[torch.randint(0, distinct, (count,), generator=generator)]
    return torch.nn.functional.normalize(x, dim=-1)


def check(query, key, first, end, num):
    """Every anchor is visible and taken once, and their similarities are the highest."""
    anchor = select_anchors(query, key, first, end, num)
    if not len(key):
        assert (anchor == -1).all()
        return
    column = torch.arange(len(key))
    visible = (column >= first[:, None]) & (column < end[:, None])
    similarity = (query.double() @ key.double().T).masked_fill(~visible, -9.0)
    found = torch.where(
        anchor >= 0, similarity.gather(1, anchor.clamp_min(0)), torch.tensor(-9.0).double()
    )
    assert (found.diff(dim=1) < 1e-6).all()  # best first
    best = similarity.sort(1, descending=True).values[:, :num]
    best = torch.nn.functional.pad(best, (0, num - best.shape[1]), value=-9.0)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-6)
    for row in anchor.tolist():
        taken = [j for j in row if j >= 0]
        assert len(taken) == len(set(taken))


@given(
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=5),
    num=st.integers(1, 9),
    seed=st.integers(0, 100),
    per_user=st.sampled_from([None, 3]),
    distinct=st.sampled_from([None, 2, 20]),
    chunk=st.sampled_from([7, 256]),
)
@settings(max_examples=60, deadline=None)
def test_anchors_are_the_most_similar_visible_keys(lengths, num, seed, per_user, distinct, chunk):
    generator = torch.Generator().manual_seed(seed)
    first, end, start = [], [], 0
    for length in lengths:
        count = per_user or length
        ends = torch.randint(0, length + 1, (count,), generator=generator)
        first += [start] * count
        end += (ends + start).tolist() if per_user else range(start + 1, start + length + 1)
        start += length
    key = vectors(start, seed, distinct=distinct)
    query = vectors(len(first), seed + 1) if per_user else key
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERIES_AT_A_TIME", chunk)
        check(query, key, torch.tensor(first).long(), torch.tensor(end).long(), num)


@pytest.mark.parametrize("distinct", [None, 40])
@pytest.mark.parametrize("num", [1, 8])
def test_long_histories_are_searched_level_by_level(num, distinct):
    key = vectors(2500, 0, distinct=distinct)
    row = torch.arange(2500)
    first = torch.where(row < 2100, 0, 2100)
    check(key, key, first, row + 1, num)


@pytest.mark.parametrize("num", [1, 8])
@pytest.mark.parametrize("count", [99, 700, 1500])
def test_a_query_that_sees_little_has_few_anchors(count, num):
    """Beside one that sees all: what is hidden, or fills a level up, is never taken."""
    key = vectors(count, 0)
    end = torch.tensor([0, 1, 2, count])
    check(vectors(4, 1), key, torch.zeros(4, dtype=torch.long), end, num)


def test_no_query_has_no_anchor():
    none = torch.zeros(0, dtype=torch.long)
    query = torch.zeros(0, 6, requires_grad=True)
    anchor, similarity = select(query, vectors(5, 0), none, none, 3)
    assert anchor.shape == similarity.shape == (0, 3)
    similarity.sum().backward()
    assert query.grad.shape == (0, 6)


def test_similarities_carry_gradients():
    key = vectors(30, 0).requires_grad_()
    row = torch.arange(30)
    anchor, similarity = select(key, key, row * 0, row + 1, 3)
    similarity[anchor >= 0].sum().backward()
    assert (key.grad.abs().sum(1) > 0).all()
    torch.testing.assert_close(
        similarity[5], (key[5] @ key.T)[anchor[5]].detach(), check_dtype=True
    )
