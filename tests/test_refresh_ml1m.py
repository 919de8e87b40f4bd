"""Refreshing MovieLens-1M, cut at two dates, with everything behind it: training, registry, gate.

Every eighth user and fourth item of the log and the profile smoke, so that it takes minutes.
"""

import itertools
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefect.settings import PREFECT_API_URL
from safetensors.numpy import load_file
from test_pipeline import DVC, HPGR, make_clone, run

from hpgr.data.log import FIRST_ITEM, TRAIN

pytestmark = pytest.mark.pipeline
CUTS = [int(datetime(*date, tzinfo=UTC).timestamp()) for date in ((2001, 7, 1), (2002, 4, 1))]
# The log is a 32nd of its size, and so are the newest events that a batch is compared with.
LIMITS = ("--set", "refresh.reference_events=625")


def rating(row):
    return row.rstrip(b"\n").split(b"::")


def flow(folder, name, *arguments):
    server = {"PREFECT_API_URL": PREFECT_API_URL.value()}  # the module's
    done = run(folder, sys.executable, "-m", f"flows.{name}", *arguments, **server)
    sessions = folder / "artifacts/sessions"
    tables = {
        table: pd.read_parquet(sessions / f"{table}.parquet")
        for table in ("events", "users", "items", "actions")
    }
    return {
        "message": done.stdout + done.stderr,
        "pin": (folder / "data.dvc").read_text(),
        "items": tables["items"].item_id.tolist(),
        "events": tables["events"].merge(tables["users"]).merge(tables["items"]),
        "vectors": load_file(folder / "artifacts/finetune/model.safetensors")[
            "trunk.items.item.weight"
        ],
        "base": json.loads((folder / "artifacts/finetune/config.json").read_text()).get("base"),
        "verdict": json.loads((folder / "artifacts/gate/verdict.json").read_text()),
        "metrics": json.loads((folder / "artifacts/evaluation/metrics.json").read_text())["R1"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prefect_server):
    """A clone with the log before both dates; one.dat and two.dat beside it are what follows."""
    folder = tmp_path_factory.mktemp("clone")
    make_clone(folder, "ml-1m")
    log = folder / "data/ml-1m/ratings.dat"
    rows = [
        row
        for row in log.read_bytes().splitlines(keepends=True)
        if not int(rating(row)[0]) % 8 and not int(rating(row)[1]) % 4
    ]
    borders = [0, *CUTS, 2**40]
    parts = [
        b"".join(row for row in rows if low <= int(rating(row)[3]) < high)
        for low, high in itertools.pairwise(borders)
    ]
    log.write_bytes(parts[0])
    for name, part in zip(("one", "two"), parts[1:], strict=True):
        (folder.parent / f"{name}.dat").write_bytes(part)
    (folder.parent / "rows.dat").write_bytes(b"".join(parts))
    run(folder, *DVC, "add", "-q", "data")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return flow(folder, "train", "--profile", "smoke")


@pytest.fixture(scope="module")
def story(folder, trained):
    """Leftovers of a training and two refreshes, one after the other."""
    batches = [folder.parent / "one.dat", folder.parent / "two.dat"]
    return [trained, *(flow(folder, "refresh", str(batch), *LIMITS) for batch in batches)]


def test_the_parts_add_up_to_the_whole_log(story, folder):
    batches = json.loads((folder / "artifacts/accepted/batches.json").read_text())
    assert [(Path(b["source"]).name, b["accepted"]) for b in batches] == [
        ("one.dat", True),
        ("two.dat", True),
    ]
    events = pd.read_parquet(folder / "artifacts/validated/events.parquet")
    rows = (folder.parent / "rows.dat").read_bytes().splitlines()
    whole = [tuple(part.decode() for part in rating(row)) for row in rows]
    columns = ["user_id", "item_id", "action", "timestamp"]
    expected = pd.DataFrame(whole, columns=columns).astype({"timestamp": "int64"})
    pd.testing.assert_frame_equal(events[columns], expected, check_dtype=False)


def test_each_batch_moves_the_pin_and_is_judged(story):
    assert len({state["pin"] for state in story}) == 3
    assert [state["verdict"]["version"] for state in story] == [1, 2, 3]
    assert story[0]["verdict"]["verdict"] == "champion"
    for state in story[1:]:
        assert state["verdict"]["verdict"] in ("accepted", "refused")
        assert state["verdict"]["metrics"]["ndcg@10"]["queries"] > 500


def test_the_gate_judges_what_the_evaluation_measured(story):
    for state in story[1:]:
        judged = state["verdict"]["metrics"]["hr@10"]["challenger"]
        assert judged == pytest.approx(state["metrics"]["hpgr"]["hr@10"], abs=1e-6)


def test_the_alias_follows_the_verdict(story, folder):
    last = story[-1]["verdict"]
    champion = last["version" if last["verdict"] == "accepted" else "champion"]
    again = run(folder, *HPGR, "promote", str(champion), "--why", "x").stdout
    assert again.startswith(f"version {champion} is champion already")


def test_each_training_goes_on_from_the_champion_of_then(story):
    champion = 1
    for before, state in itertools.pairwise(story):
        assert state["base"]["version"] == champion == state["verdict"]["champion"]
        new = len(state["items"]) - len(story[champion - 1]["items"])
        assert f"starts from hpgr version {champion}; new: {new} items" in state["message"]
        assert state["items"][: len(before["items"])] == before["items"]
        if state["verdict"]["verdict"] == "accepted":
            champion = state["verdict"]["version"]


def test_vectors_of_known_items_stay_near_the_champions(story):
    for state in story[1:]:
        old = story[state["base"]["version"] - 1]["vectors"]
        known = slice(FIRST_ITEM, FIRST_ITEM + len(old) - FIRST_ITEM - 1)  # without the mask's row
        one, other = (
            v[known] / np.linalg.norm(v[known], axis=1, keepdims=True)
            for v in (old, state["vectors"])
        )
        assert (one * other).sum(axis=1).mean() > 0.8  # of two trainings from nothing: about 0


def test_nothing_that_a_model_or_its_base_trained_on_is_held_out(story):
    keys = ["user_id", "item_id", "timestamp", "action"]
    learned = pd.DataFrame(columns=keys)
    for state in story:
        events = state["events"]
        learned = pd.concat([learned, events[events.split == TRAIN][keys]]).drop_duplicates()
        held_out = events[events.split != TRAIN][keys]
        assert len(held_out) and held_out.merge(learned, on=keys).empty


def test_a_repro_afterwards_runs_nothing(story, folder):
    assert "Running stage" not in run(folder, *DVC, "repro").stdout


def test_the_flow_says_what_it_did(story):
    for state in story[1:]:
        ran = re.findall(r"stage (\w+): (\w+)", state["message"])
        assert ran[-5:] == [
            ("validate", "skipped"),
            *((s, "ran") for s in ("sessionize", "pretrain", "finetune", "evaluate")),
        ]
