"""Shown lists through the contract: accepted, left out as a whole and why, refused.

The oracles are rows spelled out in the tests.
"""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_log import START, config, good_rows, write_csv
from sample_log import PARAMS

from hpgr.config import ConfigError, resolve
from hpgr.intake.doctor import doctor
from hpgr.intake.expectations import Expectations
from hpgr.intake.impression_rules import IN_A_BAD_LIST
from hpgr.intake.incoming import examine
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

NAMES = "impression_id,user_id,item_id,timestamp,position,label"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A raw folder with a sound log in it, in the project folder of a run without Data Docs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    write_csv(raw / "log.csv", good_rows(60))
    return raw


def good_lists(count, size=4):
    """Rows of lists with one click each; the user, the items and the time differ."""
    return [
        (f"l{n}", f"u{n % 7}", f"shown{n}-{place}", START + n, place, int(place == n % size))
        for n in range(count)
        for place in range(size)
    ]


def settings(folder, *, limits=None, **columns):
    return config(folder, impressions="shown.csv", limits=limits or {}, columns=columns)


def accepted():
    return pq.read_table(HERE.validated / "impressions.parquet").to_pandas()


def left_out(where=None):
    path = (where or HERE.validated) / "impressions_quarantine.parquet"
    rows = pq.read_table(path).to_pandas()
    return {row.row: row.reason for row in rows.itertuples()}


def test_sound_lists_go_through_with_their_types(folder):
    rows = good_lists(50)
    write_csv(folder / "shown.csv", rows, NAMES)
    validate(settings(folder))
    found = accepted()
    assert list(found.itertuples(index=False, name=None)) == [
        (*row, n) for n, row in enumerate(rows)
    ]
    assert found.dtypes[["timestamp", "position", "label"]].tolist() == ["int64", "int64", "int8"]
    summary = read_json(HERE.validated / "summary.json")["impressions"]
    assert (summary["rows"], summary["lists"], summary["accepted_lists"]) == (200, 50, 50)
    assert left_out() == {}


BAD = {
    "impression_id is missing": [("", "u", "a", START, 0, 1)],
    "user_id is missing": [("x", "", "a", START, 0, 1)],
    "item_id is missing": [("x", "u", "", START, 0, 1)],
    "timestamp is missing": [("x", "u", "a", "", 0, 1)],
    "timestamp is not a whole number": [("x", "u", "a", "2020-09-13", 0, 1)],
    "timestamp is in milliseconds or finer": [("x", "u", "a", START * 1000, 0, 1)],
    "timestamp is too early": [("x", "u", "a", -5, 0, 1)],
    "label is missing": [("x", "u", "a", START, 0, "")],
    "label is not 0 or 1": [("x", "u", "a", START, 0, 2)],
    "position is missing": [("x", "u", "a", START, "", 1)],
    "position is not a whole number": [("x", "u", "a", START, -1, 1)],
    "impression of several users": [("x", "u", "a", START, 0, 1), ("x", "v", "b", START, 1, 0)],
    "impression at several times": [("x", "u", "a", START, 0, 1), ("x", "u", "b", START + 1, 1, 0)],
    "item with both labels in the impression": [
        ("x", "u", "a", START, 0, 1), ("x", "u", "a", START, 1, 0),
    ],
    "wrong number of fields": [("x", "u", "a", START, 0, 1, "extra")],
}  # fmt: skip


def test_each_bad_row_takes_its_list_with_it(folder):
    rows, expected = good_lists(500), {}
    for number, (reason, bad) in enumerate(BAD.items()):
        for name, *values in bad:
            expected[len(rows)] = reason
            rows.append((name and f"bad{number}", *values))
        if len(bad) == 1 and bad[0][0] and bad[0][3] in (START, ""):
            expected[len(rows)] = IN_A_BAD_LIST  # a sound row beside it
            rows.append((f"bad{number}", "u", "sound", START, 5, 0))
    write_csv(folder / "shown.csv", rows, NAMES)
    validate(settings(folder, limits={"max_bad_share": 0.05, "chunk_rows": 1000}))
    assert left_out() == expected
    assert accepted()["row"].tolist() == list(range(2000))
    page = (HERE.validated / "report.html").read_text()
    assert "2,000" in page and "impression of several users" in page


def test_spellings_of_numbers_and_labels_are_read_and_kept_in_the_quarantine(folder):
    good = [
        ("7.0", "u", "a", f"{START}.0", "1.0", "True"), ("7.0", "u", "b", START, 2, "0.0"),
        ("7.0", "u", "c", START, 3, "false"), ("7.0", "u", "d", START, 4, 1),
    ]  # fmt: skip
    bad = ("8.0", "u", "a", f"{START}.0", "1.0", "yes")
    write_csv(folder / "shown.csv", [*good, bad], NAMES)
    validate(settings(folder, limits={"max_bad_share": 0.2}))
    found = accepted()
    assert found["impression_id"].tolist() == ["7"] * 4
    assert found["timestamp"].tolist() == [START] * 4
    assert found["position"].tolist() == [1, 2, 3, 4]
    assert found["label"].tolist() == [1, 0, 0, 1]
    kept = pq.read_table(HERE.validated / "impressions_quarantine.parquet").to_pylist()[0]
    assert (kept["timestamp"], kept["position"], kept["label"]) == (f"{START}.0", "1.0", "yes")
    assert (kept["file"], kept["line"]) == ("shown.csv", 6)


def test_an_item_shown_again_is_left_out_alone(folder):
    rows = good_lists(50)
    write_csv(folder / "shown.csv", [*rows, (*rows[1][:4], 9, rows[1][5])], NAMES)
    validate(settings(folder, limits={"max_bad_share": 0.0}))
    assert left_out() == {200: "item shown again in the impression"}
    assert accepted()["row"].tolist() == list(range(200))


def test_too_many_lost_rows_refuse_the_log_and_leave_the_evidence(folder):
    rows = good_lists(50)
    rows[5] = (*rows[5][:5], "maybe")
    write_csv(folder / "shown.csv", rows, NAMES)
    with pytest.raises(UserError) as refusal:
        validate(settings(folder, limits={"max_bad_share": 0.01}))
    assert "share of impression rows left out: found 0.02, expected at most 0.01" in str(
        refusal.value
    )
    assert "1 x label is not 0 or 1; write 0 or 1" in str(refusal.value)
    assert len(left_out(HERE.rejected)) == 4
    assert not HERE.validated.exists()
    assert not (HERE.rejected / "impressions.parquet").exists()


def test_parquet_with_truth_values_and_names_of_its_own(folder):
    table = pa.table(
        {
            "list": [1.0, 1.0], "user_id": [7, 7], "item_id": [1, 2],
            "timestamp": pa.array([START, START], pa.timestamp("s")), "clicked": [True, False],
        }
    )  # fmt: skip
    pq.write_table(table, folder / "shown.parquet")
    columns = {"impression_id": "list", "position": None, "label": "clicked"}
    validate(config(folder, impressions="shown.parquet", columns=columns))
    found = accepted()
    assert found["impression_id"].tolist() == ["1", "1"]
    assert found["label"].tolist() == [1, 0]
    assert found["timestamp"].tolist() == [START, START]
    assert found["position"].isna().all()


def test_without_impressions_the_table_is_empty_and_the_summary_is_silent(folder):
    validate(config(folder))
    assert accepted().empty
    assert "impressions" not in read_json(HERE.validated / "summary.json")
    assert not (HERE.validated / "impressions_quarantine.parquet").exists()


def test_a_missing_column_is_one_clear_error(folder):
    write_csv(folder / "shown.csv", [("l", "u", "i", START, 0, 1)], NAMES.replace("label", "click"))
    with pytest.raises(UserError, match=r"'label': set data\.columns\.label to"):
        validate(settings(folder))
    (problem,) = doctor(folder / "shown.csv", settings(folder))
    assert (problem.kind, problem.column) == ("missing column", "label")


def test_the_doctor_names_the_lines_of_bad_rows(folder):
    rows = [*good_lists(1), ("l9", "u", "i", START, 0, 2), ("l8", "u", "i", START, 0, 1),
            ("l8", "v", "j", START, 1, 0)]  # fmt: skip
    write_csv(folder / "shown.csv", rows, NAMES)
    problems = doctor(folder, settings(folder))
    assert [(p.file.name, p.line, p.column, p.kind) for p in problems] == [
        ("shown.csv", 6, "label", "label is not 0 or 1"),
        ("shown.csv", 7, "impression_id", "impression of several users"),
        ("shown.csv", 8, "impression_id", "impression of several users"),
    ]
    assert problems[0].found == "'2'"


def test_a_batch_brings_lists_of_its_own_and_bad_ones_refuse_it(folder):
    write_csv(folder / "shown.csv", good_lists(50), NAMES)
    cfg = settings(folder)
    validate(cfg)
    batch = HERE.root / "batch"
    batch.mkdir()
    later = [(user, item, time + 3600) for user, item, time in good_rows(30)]
    write_csv(batch / "log.csv", later)
    write_csv(batch / "shown.csv", [(f"n{row[0]}", *row[1:]) for row in good_lists(20)], NAMES)
    assert examine(cfg, batch, evidence=False).reasons == ()
    write_csv(batch / "shown.csv", [("n", "u", "i", START, 0, 7)], NAMES)
    reasons = examine(cfg, batch, evidence=False).reasons
    assert any(reason.startswith("no impression is accepted") for reason in reasons)


def test_increments_are_read_behind_the_base(folder):
    write_csv(folder / "shown.csv", good_lists(10), NAMES)
    increment = folder / "increments" / "0001-aaaaaaaaaaaa"
    increment.mkdir(parents=True)
    later = [(user, item, time + 3600) for user, item, time in good_rows(30)]
    write_csv(increment / "log.csv", later)
    more = [*good_lists(11)[40:], *good_lists(1)]  # a new list, and one of the base again
    write_csv(increment / "shown.csv", more, NAMES)
    validate(settings(folder))
    assert accepted()["impression_id"].unique().tolist() == [f"l{n}" for n in range(11)]
    assert set(left_out().values()) == {"item shown again in the impression"}


def test_columns_that_lists_cannot_do_without_are_named():
    columns = {**PARAMS["data"]["columns"], "label": None}
    data = {**PARAMS["data"], "impressions": "shown.csv", "columns": columns}
    with pytest.raises(ConfigError, match=r"data\.columns\.label: found null"):
        resolve({**PARAMS, "data": data})


def test_the_order_of_rows_does_not_matter_to_a_list(folder):
    rows = pd.DataFrame(good_lists(50)).sample(frac=1, random_state=0)
    write_csv(folder / "shown.csv", list(rows.itertuples(index=False, name=None)), NAMES)
    validate(settings(folder))
    assert len(accepted()) == 200 and left_out() == {}
