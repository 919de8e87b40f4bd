"""Trained events are recognised in any later log, and refused where they are held out.

The oracle is plain Python: sets of events. Logs grow at their end and in their middle, lose events,
and are split anew; sessionize must refuse the base exactly where a held-out event was trained on.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sample_log import config, keep_as_base, log_of, table_of_events, write_validated

from hpgr.data import trained_events as memory
from hpgr.data.log import TEST, TRAIN, VALIDATION
from hpgr.data.sessionize import sessionize
from hpgr.runtime import DamagedFile, UserError, write_json
from hpgr.workspace import HERE

SPLITS = ("leave-one-out", "global-time")
event = st.tuples(
    st.integers(0, 4), st.integers(0, 9), st.integers(0, 60), st.sampled_from([0, 1, 5])
)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty project folder."""
    monkeypatch.chdir(tmp_path)


def events(*parts):
    """Events of the split's parts by their outside names, without the tables' help."""
    tables = [
        pq.read_table(HERE.sessions / f"{name}.parquet").to_pandas()
        for name in ("events", "users", "items", "actions")
    ]
    log, users, items, actions = tables
    log = log[log.split.isin(parts)]
    log = log.merge(users, on="user").merge(items, on="item").merge(actions, "left", on="action")
    names = log.name.where(log.name.notna(), None)
    return set(zip(log.user_id, log.item_id, log.timestamp, names, strict=True))


def cut(split, share):
    return config(
        min_item_events=1, split=split, validation_share=share, test_share=share, min_user_events=3
    )


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=st.lists(event, min_size=15, max_size=40),
    more=st.lists(event, max_size=30),
    lost=st.integers(0, 8),
    splits=st.tuples(st.sampled_from(SPLITS), st.sampled_from(SPLITS)),
    shares=st.tuples(st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.3])),
)
def test_a_base_is_refused_exactly_where_it_trained_on_what_is_held_out(
    workspace,
    first,
    more,
    lost,
    splits,
    shares,
):
    for folder in (HERE.base, Path("aside")):
        shutil.rmtree(folder, ignore_errors=True)
    write_validated(log_of(first), [])
    try:
        sessionize(cut(splits[0], shares[0]))
    except UserError:
        assume(False)  # too little is left for a split
    trained = events(TRAIN)
    keep_as_base()
    HERE.base.rename("aside")
    second = log_of([*first[lost:], *more])
    write_validated(second, [])
    try:
        sessionize(cut(splits[1], shares[1]))
    except UserError:
        assume(False)
    held_out = events(VALIDATION, TEST)
    union = trained | events(TRAIN)
    Path("aside").rename(HERE.base)
    both = len(trained & held_out)
    if both:
        with pytest.raises(UserError, match=rf"^{both} of {len(held_out)} events that the split"):
            sessionize(cut(splits[1], shares[1]))
    else:
        sessionize(cut(splits[1], shares[1]))
        assert len(memory.read_sketch(HERE.sessions)) == len(union)


def test_late_events_move_a_border_of_the_time_split_back(workspace):
    rows = [(user, user + step, 1000 * step, 5) for step in range(20) for user in range(5)]
    write_validated(log_of(rows), [])
    sessionize(cut("global-time", 0.1))
    keep_as_base()
    late = [(user, 30 + step, 10 + step, 5) for step in range(20) for user in range(5)]
    write_validated(log_of([*rows, *late]), [])
    with pytest.raises(UserError, match=r"version 1, below base/, has trained on.*late events"):
        sessionize(cut("global-time", 0.1))
    write_validated(log_of([*rows, *late[:2], (0, 40, 20_000, 5), (1, 40, 20_000, 5)]), [])
    sessionize(cut("global-time", 0.1))


def test_a_log_that_grows_at_its_end_fits_under_both_splits(workspace):
    whole = table_of_events()
    order = np.argsort(whole["timestamp"], kind="stable")
    parts = [{k: [v[n] for n in rows] for k, v in whole.items()} for rows in (order[:400], order)]
    for split in SPLITS:
        shutil.rmtree(HERE.base, ignore_errors=True)
        for part in parts:
            write_validated(part)
            sessionize(config(split=split))
            keep_as_base()


def test_a_sketch_tells_of_a_sample_only_and_that_exactly(workspace, monkeypatch):
    write_validated(table_of_events())
    sessionize(config())
    whole, total = memory.read_sketch(HERE.sessions), len(events(VALIDATION, TEST))
    monkeypatch.setattr(memory, "KEPT", 50)
    memory.remember(HERE.sessions, HERE.base)
    sketch = memory.read_sketch(HERE.sessions)
    assert sketch.tolist() == sorted(whole.tolist())[:50]
    training = memory.overlap(sketch, HERE.sessions, TRAIN)
    assert training.trained == training.known == 50
    held_out = memory.overlap(sketch, HERE.sessions, VALIDATION, TEST)
    assert held_out.trained == 0 < held_out.known < total


def test_two_events_never_share_a_hash_here(workspace):
    write_validated(table_of_events())
    sessionize(config())
    assert len(memory.read_sketch(HERE.sessions)) == len(events(TRAIN))


def test_a_damaged_sketch_is_reported(tmp_path):
    path = Path(tmp_path / memory.SKETCH)
    np.save(path, np.arange(100, dtype=np.uint64))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFile, match=r"trained\.npy is damaged"):
        memory.read_sketch(tmp_path)
    np.save(path, np.arange(3.0))
    with pytest.raises(DamagedFile, match="expected a row of uint64, found float64"):
        memory.read_sketch(tmp_path)
    write_json(tmp_path / "other.json", {})
    with pytest.raises(FileNotFoundError):
        memory.read_sketch(tmp_path / "nowhere")
