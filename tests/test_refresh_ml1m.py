"""Refreshing on MovieLens-1M cut at two dates: the log until the first, two batches after it."""

import itertools
import json
import random
import subprocess
import sys
from datetime import UTC, datetime

import pandas as pd
import pytest
from refresh_project import drive, items, make_project, reproduce

pytestmark = pytest.mark.pipeline
CUTS = [int(datetime(*date, tzinfo=UTC).timestamp()) for date in ((2001, 7, 1), (2002, 4, 1))]


def rating(row):
    return row.rstrip(b"\n").split(b"::")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The project with the first part as its log, and the three parts' rows."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, {})
    command = [sys.executable, "-m", "hpgr.cli", "fetch", "ml-1m"]
    fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"ml-1m cannot be fetched: {fetched.stderr.strip()[-400:]}")
    log = folder / "data/ml-1m/ratings.dat"
    rows = log.read_bytes().splitlines(keepends=True)
    times = [int(rating(row)[3]) for row in rows]
    borders = [0, *CUTS, max(times) + 1]
    found = [
        [row for row, time in zip(rows, times, strict=True) if low <= time < high]
        for low, high in itertools.pairwise(borders)
    ]
    log.write_bytes(b"".join(found[0]))
    for name, part in zip(("one", "two"), found[1:], strict=True):
        (folder / f"{name}.dat").write_bytes(b"".join(part))
    names = sorted({rating(row)[1] for row in found[1]})
    others = dict(zip(names, random.Random(0).sample(names, len(names)), strict=True))
    swapped = [(user, others[item], *rest) for user, item, *rest in map(rating, found[1])]
    (folder / "shuffled.dat").write_bytes(b"".join(b"::".join(row) + b"\n" for row in swapped))
    reproduce(folder)
    return folder, found


def test_both_batches_go_in_and_shuffled_ids_do_not(parts):
    folder, found = parts
    before = items(folder)
    drive(folder, "shuffled.dat", "one.dat", "two.dat")
    batches = json.loads((folder / "artifacts/accepted/batches.json").read_text())
    assert [(b["source"], b["accepted"], b["rows"]) for b in batches] == [
        ("shuffled.dat", False, len(found[1])),
        ("one.dat", True, len(found[1])),
        ("two.dat", True, len(found[2])),
    ]
    assert any(reason.startswith("drift of the items") for reason in batches[0]["reasons"])
    events = pd.read_parquet(folder / "artifacts/validated/events.parquet")
    whole = [tuple(part.decode() for part in rating(row)) for rows in found for row in rows]
    columns = ["user_id", "item_id", "action", "timestamp"]
    expected = pd.DataFrame(whole, columns=columns).astype({"timestamp": "int64"})
    pd.testing.assert_frame_equal(events[columns], expected, check_dtype=False)
    assert items(folder)[: len(before)] == before
    assert set(items(folder)) == set(expected.item_id)
