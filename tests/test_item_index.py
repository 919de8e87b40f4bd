"""Approximate search of a catalogue, against numpy's exact one."""

import sys

import numpy as np
import pytest

from hpgr.data.log import FIRST_ITEM
from hpgr.model.repeat_counts import Pairs
from hpgr.registry.bundle import Serving
from hpgr.runtime import UserError
from hpgr.serving.best_items import Finder
from hpgr.serving.item_index import ItemIndex

ITEMS, WIDTH, QUERIES, COUNT = 2_000, 16, 50, 20
NOTHING = Pairs.of([])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    """Items around 40 centres, and states near some of them."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, WIDTH))
    items, states = (
        centres[random.integers(40, size=n)] + 0.8 * random.normal(size=(n, WIDTH))
        for n in (ITEMS, QUERIES)
    )
    return unit(states), unit(items)


def exact(states, items, count):
    scores = states @ items.T
    scores[:, :FIRST_ITEM] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)


def test_all_cells_hold_what_an_exact_search_finds(vectors):
    states, items = vectors
    index = ItemIndex(items)
    index.probes = index.cells
    item, near = index.search(states, COUNT)
    expected, cosine = exact(states, items, COUNT)
    assert (item == expected).all()
    np.testing.assert_allclose(near, cosine, atol=1e-6)


def test_tuning_looks_into_no_more_cells_than_the_recall_asks_for(vectors):
    states, items = vectors
    index = ItemIndex(items)
    expected, _ = exact(states, items, COUNT)

    def recall():
        item, _ = index.search(states, COUNT)
        return np.mean([len({*a} & {*b}) / COUNT for a, b in zip(item, expected, strict=True)])

    assert index.tune(states, COUNT, 0.9) == pytest.approx(recall())
    assert recall() >= 0.9
    assert 1 < index.probes < index.cells / 2
    index.probes -= 1
    assert recall() < 0.9


def test_fewer_items_than_asked_for_end_in_empty_places(vectors):
    states, items = vectors
    index = ItemIndex(items[: FIRST_ITEM + 3])
    index.probes = index.cells
    item, near = index.search(states, 5)
    assert (item[:, 3:] == -1).all()
    assert (near[:, 3:] == -np.inf).all()


class Asked:
    """States as a network's reading gives them."""

    def __init__(self, states, items, added=NOTHING):
        self.own, self.vectors, self.added = states, items, added

    def states(self):
        return self.own

    def items(self):
        return self.vectors

    def retrieve(self, items=slice(None)):
        scores = self.own @ self.vectors[items].T
        scores[:, : max(0, FIRST_ITEM - (items.start or 0))] = -np.inf
        for query, item, added in zip(*self.added, strict=True):
            scores[query, item] += added
        return scores


def additions(random):
    """To items near and far, some of them twice in one query, and nothing in some queries."""
    query = np.repeat(np.arange(0, QUERIES, 2), 60)
    item = random.integers(FIRST_ITEM, ITEMS, len(query))
    item[::2] = random.integers(FIRST_ITEM, FIRST_ITEM + 20, len(item[::2]))
    return Pairs(query, item, random.uniform(0.0, 1.0, len(query)))


@pytest.mark.parametrize("added", [NOTHING, additions(np.random.default_rng(1))])
def test_a_finder_with_an_index_answers_as_the_one_that_scores_every_item(vectors, added):
    """Over all cells; with what was met left out, and with something added to the cosines."""
    states, items = vectors
    finder = Finder(None, Serving(1800, 200, COUNT, True, False), np.zeros(ITEMS))
    asked = Asked(states, items, added)
    nobody = np.zeros(QUERIES, bool)
    best, _ = finder._nearest(asked, nobody, None, None, 4)
    query = np.repeat(np.arange(QUERIES), 4)
    removed = (query[::2], np.sort(best, axis=1).ravel()[::2])
    index = ItemIndex(items)
    index.probes = index.cells
    found = finder._from_index(index, asked, removed, COUNT)
    expected = finder._nearest(asked, nobody, removed, None, COUNT)
    assert (found[0] == expected[0]).all()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_additions_are_found_in_cells_that_no_state_looks_into(vectors):
    states, items = vectors
    finder = Finder(None, Serving(1800, 200, COUNT, True, False), np.zeros(ITEMS))
    furthest = np.argmin(states @ items[FIRST_ITEM:].T, axis=1) + FIRST_ITEM
    added = Pairs(np.arange(QUERIES), furthest, np.full(QUERIES, 3.0))
    index = ItemIndex(items)
    index.probes = 1
    item, _ = finder._from_index(index, Asked(states, items, added), None, COUNT)
    assert (item[:, 0] == furthest).all()
    assert not (furthest[:, None] == index.search(states, COUNT)[0]).any()


def test_without_faiss_the_message_says_what_to_install(monkeypatch, vectors):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'hpgr\[index\]'"):
        ItemIndex(vectors[1])
