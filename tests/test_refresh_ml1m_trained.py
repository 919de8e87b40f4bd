"""Refreshing MovieLens-1M, cut at two dates, with everything behind it: training, registry, gate.

Every eighth user of the log and the profile smoke, so that it takes minutes. (The whole log without
training: test_refresh_ml1m.py.)
"""

import itertools
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from test_pipeline import DVC, make_clone, run
from test_refresh_ml1m import CUTS, rating

from hpgr.data.log import FIRST_ITEM, TRAIN

pytestmark = pytest.mark.pipeline
# The log is an eighth of its size, and so are the newest events that a batch is compared with.
LIMITS = ("--set", "refresh.reference_events=2500")


def flow(folder, name, *arguments):
    done = run(folder, sys.executable, "-m", f"flows.{name}", *arguments)
    sessions = folder / "artifacts/sessions"
    tables = {
        table: pd.read_parquet(sessions / f"{table}.parquet")
        for table in ("events", "users", "items", "actions")
    }
    return {
        "told": done.stdout + done.stderr,
        "pin": (folder / "data.dvc").read_text(),
        "items": tables["items"].item_id.tolist(),
        "events": tables["events"].merge(tables["users"]).merge(tables["items"]),
        "vectors": load_file(folder / "artifacts/finetune/model.safetensors")[
            "trunk.items.item.weight"
        ],
        "base": json.loads((folder / "artifacts/finetune/config.json").read_text()).get("base"),
        "verdict": json.loads((folder / "artifacts/gate/verdict.json").read_text()),
    }


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What a training and two refreshes left behind, one after the other."""
    folder = tmp_path_factory.mktemp("clone")
    make_clone(folder, "ml-1m")
    log = folder / "data/ml-1m/ratings.dat"
    rows = [
        row for row in log.read_bytes().splitlines(keepends=True) if not int(rating(row)[0]) % 8
    ]
    borders = [0, *CUTS, 2**40]
    parts = [
        b"".join(row for row in rows if low <= int(rating(row)[3]) < high)
        for low, high in itertools.pairwise(borders)
    ]
    log.write_bytes(parts[0])
    for name, part in zip(("one", "two"), parts[1:], strict=True):
        (folder.parent / f"{name}.dat").write_bytes(part)
    run(folder, *DVC, "add", "-q", "data")
    return [
        flow(folder, "train", "--profile", "smoke"),
        flow(folder, "refresh", str(folder.parent / "one.dat"), *LIMITS),
        flow(folder, "refresh", str(folder.parent / "two.dat"), *LIMITS),
    ]


def test_each_batch_moves_the_pin_and_is_judged(story):
    assert len({state["pin"] for state in story}) == 3
    assert [state["verdict"]["version"] for state in story] == [1, 2, 3]
    assert story[0]["verdict"]["verdict"] == "champion"
    for state in story[1:]:
        assert state["verdict"]["verdict"] in ("accepted", "refused")
        assert state["verdict"]["metrics"]["ndcg@10"]["queries"] > 500


def test_each_training_goes_on_from_the_champion_of_then(story):
    champion = 1
    for before, state in itertools.pairwise(story):
        assert state["base"]["version"] == champion == state["verdict"]["champion"]
        new = len(state["items"]) - len(story[champion - 1]["items"])
        assert f"starts from hpgr version {champion}; new: {new} items" in state["told"]
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


def test_the_flow_says_what_it_did(story):
    for state in story[1:]:
        ran = re.findall(r"stage (\w+): (\w+)", state["told"])
        assert ran[-5:] == [
            ("validate", "skipped"),
            *((s, "ran") for s in ("sessionize", "pretrain", "finetune", "evaluate")),
        ]
