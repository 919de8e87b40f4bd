"""The curve and the slices of committed results, from the cells that they were judged in."""

import json
import re

import pandas as pd
import pytest
from judged_cells import judged_cell, queries

from benchmarks import cell_parts, matrix, results_file
from hpgr.runtime import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def committed(name):
    return json.loads((results_file.RESULTS / name).read_text())


def test_a_curve_is_validation_by_step_without_the_losses():
    cell, _ = judged_cell("hpgr", 0)
    assert cell_parts.curve(cell) == {
        "step": [50, 100], "ndcg@10": [0.1, 0.2], "auc": [0.61235, None],
    }  # fmt: skip


def test_answers_give_the_slices_that_the_evaluation_wrote():
    cell, expected = judged_cell("hpgr", 0)
    pd.testing.assert_frame_equal(cell_parts.of_answers(cell), expected)


def test_slices_stand_under_the_name_of_the_cells_model():
    cell, rows = judged_cell("hpgr-long", 0)
    found = cell_parts.parts(cell)["R2"]["slices"]
    rows = rows[rows["protocol"] == "R2"]
    for model, own in (("hpgr-long", "net"), ("ease", "ease")):
        expected = rows[rows["model"] == own]
        assert found["slice"] == expected["slice"].tolist()
        assert found["queries"] == expected["queries"].tolist()
        assert found["ndcg@10"][model] == pytest.approx(expected["ndcg@10"].tolist(), abs=1e-5)
    assert set(found["ndcg@10"]) == {"hpgr-long", "ease"}
    history = [n for s, n in zip(found["slice"], found["queries"], strict=True) if "history" in s]
    assert sum(history) == len(queries())


def test_slices_of_the_evaluation_come_before_those_of_its_answers():
    cell, rows = judged_cell("hpgr", 0)
    rows["ndcg@10"] = 0.5
    (cell.workspace.evaluation / "plots").mkdir()
    rows.to_csv(cell.workspace.evaluation / "plots/slices.csv", index=False)
    assert set(cell_parts.parts(cell)["R2"]["slices"]["ndcg@10"]["hpgr"]) == {0.5}
    rows[~rows["slice"].str.startswith("history")].to_csv(
        cell.workspace.evaluation / "plots/slices.csv", index=False
    )  # by a version that did not know them
    assert set(cell_parts.parts(cell)["R2"]["slices"]["ndcg@10"]["hpgr"]) != {0.5}


def test_answers_to_other_queries_are_one_message():
    cell, _ = judged_cell("hpgr", 0)
    path = cell.workspace.evaluation / "queries.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    with pytest.raises(UserError, match=r"^tiny/global-time/hpgr/0: its answers are not to"):
        cell_parts.of_answers(cell)


def test_committed_results_are_completed_and_keep_what_they_hold():
    cell, _ = judged_cell("hpgr", 0)
    results_file.RESULTS.mkdir(parents=True)
    own = json.loads((cell.results / "K1-tiny-hpgr-0.json").read_text())
    old = own | {"date": "another", "machine": "another", "commit": "another"}
    (results_file.RESULTS / "K1-tiny-hpgr-0.json").write_text(json.dumps(old))
    matrix.main(["publish"])
    found = committed("K1-tiny-hpgr-0.json")
    assert {key: found.pop(key) for key in ("curve", "slices")} == cell_parts.parts(cell)["K1"]
    assert found == old
    assert committed("R2-tiny-hpgr-0.json")["date"] == "D"  # was not there: as the cell has it


def test_results_of_other_metrics_are_refused_and_the_other_cells_are_completed():
    judged_cell("hpgr", 0)
    judged_cell("mtgr", 0)
    matrix.main(["publish"])
    path = results_file.RESULTS / "R2-tiny-hpgr-0.json"
    other = committed(path.name)
    other["metrics"]["ndcg@10"] += 1e-6
    path.write_text(json.dumps(other))
    (results_file.RESULTS / "R2-tiny-mtgr-0.json").unlink()
    with pytest.raises(UserError, match=rf"{path} has other metrics than the evaluation of tiny"):
        matrix.main(["publish"])
    assert committed(path.name) == other
    assert "slices" in committed("R2-tiny-mtgr-0.json")


def test_publishing_nothing_is_one_message():
    with pytest.raises(UserError, match="no judged cell below benchmarks/cells"):
        matrix.main(["publish"])


def test_a_list_of_plain_values_is_one_line_and_the_same_json():
    record = {"a": [1, None, "x\n{y"], "f": ["x\n]"], "b": {"c": [[1, 2], {"d": [0.5]}], "e": []}}
    text = results_file.as_text(record)
    assert json.loads(text) == record
    assert '"d": [ 0.5 ]' in text
    assert re.search(r"^      \[ 1, 2 \],$", text, re.MULTILINE)
