"""Refreshing MovieLens-1M, cut at a date, with everything behind it: training, registry, gate.

Every eighth user and fourth item of the log and the profile smoke, so that it takes minutes.
"""

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
CUT = int(datetime(2001, 7, 1, tzinfo=UTC).timestamp())
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
    """A clone with the log before the date; batch.dat beside it is what follows."""
    folder = tmp_path_factory.mktemp("clone")
    make_clone(folder, "ml-1m")
    log = folder / "data/ml-1m/ratings.dat"
    rows = [
        row
        for row in log.read_bytes().splitlines(keepends=True)
        if not int(rating(row)[0]) % 8 and not int(rating(row)[1]) % 4
    ]
    old, new = (
        b"".join(row for row in rows if (int(rating(row)[3]) < CUT) == before)
        for before in (True, False)
    )
    log.write_bytes(old)
    (folder.parent / "batch.dat").write_bytes(new)
    (folder.parent / "rows.dat").write_bytes(old + new)
    run(folder, *DVC, "add", "-q", "data")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return flow(folder, "train", "--profile", "smoke")


@pytest.fixture(scope="module")
def story(folder, trained):
    """Leftovers of a training and of a refresh."""
    return [trained, flow(folder, "refresh", str(folder.parent / "batch.dat"), *LIMITS)]


def test_the_parts_add_up_to_the_whole_log(story, folder):
    batches = json.loads((folder / "artifacts/accepted/batches.json").read_text())
    assert [(Path(b["source"]).name, b["accepted"]) for b in batches] == [("batch.dat", True)]
    events = pd.read_parquet(folder / "artifacts/validated/events.parquet")
    rows = (folder.parent / "rows.dat").read_bytes().splitlines()
    whole = [tuple(part.decode() for part in rating(row)) for row in rows]
    columns = ["user_id", "item_id", "action", "timestamp"]
    expected = pd.DataFrame(whole, columns=columns).astype({"timestamp": "int64"})
    pd.testing.assert_frame_equal(events[columns], expected, check_dtype=False)


def test_the_batch_moves_the_pin_and_is_judged(story):
    before, after = story
    assert before["pin"] != after["pin"]
    assert [state["verdict"]["version"] for state in story] == [1, 2]
    assert before["verdict"]["verdict"] == "champion"
    assert after["verdict"]["verdict"] in ("accepted", "refused")
    assert after["verdict"]["metrics"]["ndcg@10"]["queries"] > 500


def test_the_gate_judges_what_the_evaluation_measured(story):
    judged = story[1]["verdict"]["metrics"]["hr@10"]["challenger"]
    assert judged == pytest.approx(story[1]["metrics"]["hpgr"]["hr@10"], abs=1e-6)


def test_the_alias_follows_the_verdict(story, folder):
    last = story[-1]["verdict"]
    champion = last["version" if last["verdict"] == "accepted" else "champion"]
    again = run(folder, *HPGR, "promote", str(champion), "--why", "x").stdout
    assert again.startswith(f"version {champion} is champion already")


def test_the_training_goes_on_from_the_champion(story):
    before, after = story
    assert after["base"]["version"] == 1 == after["verdict"]["champion"]
    new = len(after["items"]) - len(before["items"])
    assert f"starts from hpgr version 1; new: {new} items" in after["message"]
    assert after["items"][: len(before["items"])] == before["items"]


def test_vectors_of_known_items_stay_near_the_champions(story):
    old = story[0]["vectors"]
    known = slice(FIRST_ITEM, FIRST_ITEM + len(old) - FIRST_ITEM - 1)  # without the mask's row
    one, other = (
        v[known] / np.linalg.norm(v[known], axis=1, keepdims=True)
        for v in (old, story[1]["vectors"])
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
    ran = re.findall(r"stage (\w+): (\w+)", story[1]["message"])
    assert ran[-5:] == [
        ("validate", "skipped"),
        *((s, "ran") for s in ("sessionize", "pretrain", "finetune", "evaluate")),
    ]
