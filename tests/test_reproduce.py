"""Rows that are run again, against results written here."""

import json
import sys

import pytest

from benchmarks import reproduce
from benchmarks.matrix import Cell
from hpgr.runtime import UserError

CELL = Cell("tiny", "leave-one-out", "hpgr", "0")
METRICS = ("hr@10", "ndcg@10", "hr@50", "hr@200")


def result(value, seed=0):
    return {
        "protocol": "R1", "split": "leave-one-out", "seed": seed,
        "metrics": dict.fromkeys(METRICS, value),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "found", "agrees"),
    [
        ([0.3, 0.32, 0.34], 0.33, True),  # their deviation is .02
        ([0.3, 0.32, 0.34], 0.345, False),
        ([0.3, 0.3], 0.3029, True),  # equal by chance, as two seeds can be
        ([0.3, 0.3], 0.304, False),
        ([0.3, 0.32], 0.327, True),
        ([0.3], 0.3029, True),
        ([0.3], 0.304, False),
    ],
)
def test_a_row_agrees_within_the_spread_of_its_seeds(seeds, found, agrees):
    rows = reproduce.agreement([result(value) for value in seeds], result(found))
    assert [row["agrees"] for row in rows.values()] == [agrees] * len(METRICS)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with committed results of one seed; a run finds `clone.value`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "R1-tiny-hpgr-0.json").write_text(json.dumps(result(0.3)))

    def judge(cell):
        cell.results.mkdir(parents=True)
        text = json.dumps(result(judge.value))
        for place in (cell.results, folder):  # as a run replaces what is committed
            (place / "R1-tiny-hpgr-0.json").write_text(text)

    monkeypatch.setattr(reproduce, "run_cell", judge)
    monkeypatch.setattr(sys, "argv", ["reproduce", str(CELL)])
    return judge


def test_what_was_committed_and_found_is_written(clone):
    clone.value = 0.301
    reproduce.main()
    written = json.loads((reproduce.RESULTS / "reproduced.json").read_text())["figures"]
    row = written["R1-tiny-hpgr-0"]["ndcg@10"]
    assert row == {"committed": 0.3, "found": 0.301, "allowed": 0.003, "agrees": True}


def test_a_row_that_came_out_otherwise_is_named(clone):
    clone.value = 0.2
    with pytest.raises(UserError, match=r"R1-tiny-hpgr-0: expected what is committed"):
        reproduce.main()
    assert (reproduce.RESULTS / "reproduced.json").is_file()


@pytest.mark.parametrize(
    ("name", "why"),
    [("tiny/hpgr/0", "expected DATASET/SPLIT"), ("tiny/leave-one-out/hpgr/7", "has no results of")],
)
def test_a_cell_that_cannot_be_compared_does_not_run(name, why, clone, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", str(CELL), name])
    with pytest.raises(UserError, match=why):
        reproduce.main()
    assert not CELL.results.exists()
