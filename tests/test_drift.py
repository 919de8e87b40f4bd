"""Drift beyond chance, and a batch's figures beside those of the log; the oracle is pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_log import PARAMS

from hpgr.config import load_config
from hpgr.intake.drift import compare, drift
from hpgr.intake.screening import EVENTS_SCHEMA

LIMITS = load_config(PARAMS).refresh
SIZE = 2000


def entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """By entropies: that of the mean less the mean of those."""
    mean = (one / one.sum() + other / other.sum()) / 2
    return entropy(mean) - (entropy(one) + entropy(other)) / 2


def long_tail(num_items: int) -> np.ndarray:
    shares = 1 / np.arange(1, num_items + 1)
    return shares / shares.sum()


counts = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any).map(np.array)


@given(counts, counts)
def test_drift_lies_between_0_and_1_and_repeats(one, other):
    found = drift(one, other)
    assert 0 <= found <= 1
    assert drift(one, other) == found


def test_disjoint_samples_are_wholly_apart():
    half = np.repeat([100, 0], 5)
    assert drift(half, half[::-1]) == pytest.approx(1)


def test_equal_samples_have_none():
    assert drift(np.array([5, 3, 2]), np.array([5, 3, 2])) == 0


def test_large_samples_give_the_plain_divergence():
    """With a million events chance explains nothing."""
    one, other = np.array([600_000, 300_000, 100_000]), np.array([300_000, 600_000, 100_000])
    assert drift(one, other) == pytest.approx(divergence(one, other), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_two_samples_of_one_long_tail_do_not_drift_however_far_apart(seed):
    random, shares = np.random.default_rng(seed), long_tail(3000)
    one, other = random.multinomial(500, shares), random.multinomial(SIZE, shares)
    assert divergence(one, other) > 0.3  # what an uncorrected figure would say
    assert drift(one, other) < 0.05


@pytest.mark.parametrize("size", [500, 2000, 20000])
def test_shuffled_ids_drift_whatever_the_size(size):
    random, shares = np.random.default_rng(size), long_tail(3000)
    one, other = (
        random.multinomial(size, random.permutation(shares)),
        random.multinomial(SIZE, shares),
    )
    assert drift(one, other) > 0.3


def test_a_sample_without_events_is_an_error():
    with pytest.raises(ValueError, match="without events"):
        drift(np.array([0, 0]), np.array([1, 2]))


def write(path: Path, events: pd.DataFrame) -> Path:
    frame = events.assign(session_id=None, row=range(len(events)))
    pq.write_table(pa.Table.from_pandas(frame[EVENTS_SCHEMA.names], EVENTS_SCHEMA), path)
    return path


def random_events(seed: int, size: int, first: int, items: int = 30) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in random.integers(0, 9, size)],
            "item_id": [f"i{n}" for n in random.integers(0, items, size)],
            "timestamp": first + random.integers(0, 10**6, size),
            "action": [[None, "1", "5"][n] for n in random.integers(0, 3, size)],
        }
    )


@pytest.mark.parametrize("reference_events", [50, 10**6])
def test_figures_equal_those_of_pandas(tmp_path, reference_events):
    log = random_events(0, 900, 10**9)
    batch = random_events(1, 200, 10**9 + 900_000, items=40)
    limits = LIMITS.model_copy(update={"reference_events": reference_events})
    found = compare(
        write(tmp_path / "b.parquet", batch), write(tmp_path / "l.parquet", log), limits
    )
    newest = log.sort_values("timestamp", kind="stable").tail(max(200, reference_events))
    known = batch[batch.item_id.isin(log.item_id)]

    def of(column: str, part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        values = pd.concat([part[column], newest[column]]).fillna("~").unique()
        return tuple(
            frame[column].fillna("~").value_counts().reindex(values, fill_value=0).to_numpy()
            for frame in (part, newest)
        )

    def per_day(part: pd.DataFrame) -> float:
        return len(part) / ((part.timestamp.max() - part.timestamp.min()) / 86400)

    assert found == {
        "first_timestamp": batch.timestamp.min(),
        "last_timestamp": batch.timestamp.max(),
        "late": (batch.timestamp < log.timestamp.max()).sum(),
        "events_per_day": pytest.approx(per_day(batch)),
        "events_per_day_before": pytest.approx(per_day(newest)),
        # Another order of the kinds draws other random splits: equal but for their noise.
        "item_drift": pytest.approx(drift(*of("item_id", known)), abs=0.03),
        "action_drift": pytest.approx(drift(*of("action", batch)), abs=0.01),
        "unknown_items": pytest.approx(1 - len(known) / len(batch)),
    }


def test_a_batch_of_one_second_has_a_finite_volume(tmp_path):
    log, batch = random_events(0, 100, 10**9), random_events(1, 6, 10**9)
    batch["timestamp"] = 10**9
    paths = write(tmp_path / "b.parquet", batch), write(tmp_path / "l.parquet", log)
    assert compare(*paths, LIMITS)["events_per_day"] == 6 * 24


def test_a_batch_of_unknown_items_alone_has_no_drift(tmp_path):
    log, batch = random_events(0, 100, 10**9), random_events(1, 50, 10**9)
    batch["item_id"] = "new" + batch["item_id"]
    paths = write(tmp_path / "b.parquet", batch), write(tmp_path / "l.parquet", log)
    found = compare(*paths, LIMITS)
    assert (found["item_drift"], found["unknown_items"]) == (None, 1)


def test_a_batch_without_accepted_events_has_no_figures(tmp_path):
    log, batch = random_events(0, 100, 10**9), random_events(1, 0, 10**9)
    paths = write(tmp_path / "b.parquet", batch), write(tmp_path / "l.parquet", log)
    found = compare(*paths, LIMITS)
    del found["events_per_day_before"]
    assert found.pop("late") == 0
    assert set(found.values()) == {None}
