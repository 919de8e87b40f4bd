"""The refresh flow on a log cut at two dates: real Prefect and DVC, the stages up to sessionize.

Training and registration are left out: `DRIVER` puts the vocabulary of the last run below base/, as
filling it from the registry does.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from refresh_project import DVC, ROOT, drive, items, make_project, reproduce, run

from flows.refresh import page
from hpgr.intake.incoming import BatchFinding

START, STEP_S = 1_600_000_000, 600
BASE, FIRST, SECOND = 2400, 400, 400  # events of the base log and of both batches


def events() -> list[str]:
    """Lines of a log in which items come up for the first time now and then."""
    draw = random.Random(0)
    return [
        f"u{draw.randrange(80)},i{int((20 + n / 50) * draw.random() ** 3)},"
        f"{START + STEP_S * n},{draw.choice([5, 5, 4, 1])}"
        for n in range(BASE + FIRST + SECOND)
    ]


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["user_id,item_id,timestamp,stars", *lines]) + "\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect_database) -> Path:
    """This working tree's code with the first part of the log, validated and sessionized."""
    folder = tmp_path_factory.mktemp("project")
    columns = yaml.safe_load((ROOT / "params.yaml").read_text())["data"]["columns"]
    log = {"path": "data/shop", "format": "table", "interactions": "log.csv"}
    make_project(
        folder,
        {
            "data": {**log, "columns": {**columns, "action": "stars"}},
            "sessionize": {"min_item_events": 5},
        },
    )
    lines = events()
    (folder / ".prefect").mkdir()
    shutil.copy(prefect_database, folder / ".prefect")
    (folder / "data/shop").mkdir(parents=True)
    write(folder / "data/shop/log.csv", lines[:BASE])
    write(folder / "one.csv", lines[BASE : BASE + FIRST])
    write(folder / "two.csv", lines[BASE + FIRST :])
    write(folder / "bad.csv", [line[:-1] + str(6 - int(line[-1])) for line in lines[BASE:]])
    reproduce(folder)
    return folder


@pytest.fixture(scope="module")
def refreshed(project) -> dict:
    """Results of a series of refreshes in one process."""
    before = items(project)
    steps = ["bad.csv", "die while taking in", "one.csv", "one.csv", "two.csv"]
    outcomes, log = drive(project, *steps)
    names = ["bad", "one", "again", "two"]
    return {"items": before, "log": log, **dict(zip(names, outcomes, strict=True))}


def pins(refreshed: dict) -> list[str]:
    return [refreshed[name][1] for name in ("bad", "one", "again", "two")]


pytestmark = pytest.mark.pipeline


def test_a_refused_batch_fails_the_run_and_leaves_the_log(refreshed, project):
    message, pin = refreshed["bad"]
    assert "drift of the actions: found" in message and "artifacts/rejected/report.html" in message
    assert pin != refreshed["one"][1]


def test_an_interrupted_batch_is_undone_and_comes_again(refreshed):
    assert "had begun to take in" in refreshed["log"]
    assert refreshed["one"][0] == {"validate": "skipped", "sessionize": "ran"}


def test_the_same_batch_again_changes_nothing_and_says_so(refreshed):
    assert "one.csv is in the log already" in refreshed["log"]
    assert refreshed["again"] == [
        {"validate": "skipped", "sessionize": "skipped"},
        pins(refreshed)[1],
    ]


def test_data_dvc_moves_with_every_batch(refreshed):
    bad, one, again, two = pins(refreshed)
    assert len({bad, one, two}) == 3 and one == again


def test_the_parts_add_up_to_the_whole_log(refreshed, project):
    found = pq.read_table(project / "artifacts/validated/events.parquet")
    rows = zip(
        *(found[name].to_pylist() for name in ("user_id", "item_id", "timestamp", "action")),
        strict=True,
    )
    assert [",".join(map(str, row)) for row in rows] == events()
    assert found["row"].to_pylist() == list(range(BASE + FIRST + SECOND))


def test_old_ids_stay_over_both_batches(refreshed, project):
    old, new = refreshed["items"], items(project)
    assert new[: len(old)] == old and len(new) > len(old)


def test_every_batch_is_on_record(refreshed, project):
    batches = json.loads((project / "artifacts/accepted/batches.json").read_text())
    found = [(batch["source"], batch["accepted"], batch["rows"]) for batch in batches]
    assert found == [
        ("bad.csv", False, FIRST + SECOND),
        ("one.csv", True, FIRST),
        ("two.csv", True, SECOND),
    ]
    assert not (project / "artifacts/accepted/taking.json").exists()


def test_a_repro_afterwards_runs_nothing(refreshed, project):
    again = run(project, *DVC, "repro")
    assert "Running stage" not in again
    assert again.count("didn't change, skipping") == 3  # data.dvc and both stages


def test_a_log_that_the_validate_stage_refuses_is_as_it_was(refreshed, project):
    """The batch alone is good, but doubles the log."""
    lines = [f"v{n % 50},i{n % 7},{START + STEP_S * (3200 + n)},5" for n in range(1000)]
    write(project / "much.csv", lines)
    params = (project / "params.yaml").read_text()
    values = yaml.safe_load(params)
    values["validate"]["max_volume_change"] = 0.25
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    before = items(project)
    limits = {"refresh.max_item_drift": 1.0, "refresh.max_action_drift": 1.0}
    try:
        ((message, pin),), _ = drive(project, {"incoming": "much.csv", "overrides": limits})
        assert yaml.safe_load((project / "params.yaml").read_text()) == values  # for one run only
        assert "rows against the last accepted batch" in message
        assert pin == refreshed["two"][1]
        assert "up to date" in run(project, *DVC, "status", "data.dvc")
        assert (project / "artifacts/validated/events.parquet").is_file()
        assert items(project) == before
        last = json.loads((project / "artifacts/accepted/batches.json").read_text())[-1]
        assert (last["source"], last["accepted"]) == ("much.csv", False)
    finally:
        (project / "params.yaml").write_text(params)


def test_the_page_sets_a_batch_beside_the_last_one():
    entry = {"source": "new.csv", "rows": 1200, "item_drift": 0.5, "action_drift": None}
    verdict = BatchFinding("abc", {}, entry, ("drift of the items: found 0.5",), (), None)
    shown = page(verdict, {"rows": 1000, "item_drift": 0.01})
    assert "**Refused**: `new.csv`" in shown and "- drift of the items: found 0.5" in shown
    assert "| rows | 1,200 | 1,000 |" in shown
    assert "| drift of the items | 0.500 | 0.010 |" in shown
    assert "| drift of the actions |  |  |" in shown


def test_without_a_champion_the_batch_is_not_taken_in(project):
    pin = (project / "data.dvc").read_text()
    reported = run(project, sys.executable, "-m", "flows.refresh", "one.csv", code=2)
    assert "the registry has none: run the flow train" in reported
    assert (project / "data.dvc").read_text() == pin
