"""The validate stage: what is accepted, what is quarantined and why, what is refused.

The oracles are rows spelled out in the tests and pandas.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_log import START, config, good_rows, write_csv

from hpgr.intake import staging
from hpgr.intake.contract import FIELDS_RULE, join_reasons, row_rules
from hpgr.intake.expectations import Expectations
from hpgr.intake.table_files import table_chunks
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

FUTURE = int(time.time()) + 30 * 86400


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder of a run, with an empty raw folder `raw` in it.

    Data Docs, half of the time, are written only where a test asks for the fixture `data_docs`.
    """
    monkeypatch.chdir(tmp_path)
    if "data_docs" not in request.fixturenames:
        monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    (tmp_path / "raw").mkdir()
    return Path("raw")


@pytest.fixture
def data_docs() -> None:
    """Marks a test that looks at Data Docs; see `folder`."""


def accepted() -> pd.DataFrame:
    return pd.read_parquet(HERE.validated / "events.parquet")


def reasons(where: Path = HERE.validated) -> dict[int, str]:
    quarantine = pd.read_parquet(where / "quarantine.parquet")
    return dict(zip(quarantine["row"], quarantine["reason"], strict=True))


def test_good_log_goes_through_unchanged(folder):
    rows = [(*row, 5 - n % 2) for n, row in enumerate(good_rows(2500))]
    write_csv(folder / "log.csv", rows, "user_id,item_id,timestamp,stars")
    validate(config(folder, columns={"action": "stars"}, limits={"chunk_rows": 1000}))
    events = accepted()
    assert list(events.columns) == [
        "user_id", "item_id", "timestamp", "action", "session_id", "row",
    ]  # fmt: skip
    found = events[["user_id", "item_id", "timestamp", "action", "row"]]
    expected = [(u, i, t, str(a), n) for n, (u, i, t, a) in enumerate(rows)]
    assert list(found.itertuples(index=False, name=None)) == expected
    assert reasons() == {}


def test_each_bad_row_is_quarantined_with_its_reason(folder):
    good = good_rows(2000)
    bad = [
        ("", "i", START, "user_id is missing"),
        ("u", "nan", START, "item_id is missing"),
        ("u", "i", "", "timestamp is missing"),
        ("u", "i", "2020-09-13", "timestamp is not a whole number"),
        ("u", "i", START + 0.5, "timestamp is not a whole number"),
        ("u", "i", START * 1000, "timestamp is in milliseconds or finer"),
        ("u", "i", START * 10**9, "timestamp is in milliseconds or finer"),
        ("u", "i", -5, "timestamp is too early"),
        ("u", "i", FUTURE, "timestamp is in the future"),
        (*good[0], "exact duplicate"),
        (*good[1999], "exact duplicate"),
        ("", "i", -5, "user_id is missing; timestamp is too early"),
    ]
    write_csv(folder / "log.csv", good + [row[:3] for row in bad])
    validate(config(folder, limits={"chunk_rows": 1000}))
    assert reasons() == {2000 + n: row[3] for n, row in enumerate(bad)}
    assert list(accepted()["row"]) == list(range(2000))


def test_quarantine_keeps_the_values_as_found(folder):
    write_csv(folder / "log.csv", [*good_rows(200), ("u", "i", "13/09/2020")])
    validate(config(folder))
    row = pd.read_parquet(HERE.validated / "quarantine.parquet").iloc[0]
    assert row[["user_id", "item_id", "timestamp", "row"]].tolist() == ["u", "i", "13/09/2020", 200]


def test_ragged_line_is_one_bad_row(folder):
    write_csv(folder / "log.csv", [*good_rows(200), ("u", "i", START, "extra")])
    validate(config(folder))
    assert reasons() == {200: FIELDS_RULE.name}


def test_item_that_the_items_table_lacks_is_quarantined(folder):
    write_csv(folder / "log.csv", [*good_rows(200), ("u", "stranger", START)])
    write_csv(folder / "items.csv", [(f"i{n}", f"Item {n}") for n in range(11)], "item_id,title")
    validate(config(folder, items="items.csv"))
    assert reasons() == {200: "item is not in the items table"}


def test_user_that_the_users_table_lacks_is_only_noted(folder):
    write_csv(folder / "log.csv", good_rows(200))
    write_csv(folder / "users.csv", [("u0", "x")], "user_id,age")
    validate(config(folder, users="users.csv"))
    assert len(accepted()) == 200
    assert read_json(HERE.validated / "summary.json")["users_without_features"] == 6


def test_items_and_users_are_made_from_the_events_where_there_are_none(folder):
    write_csv(folder / "log.csv", [("b", "y", START), ("a", "x", START), ("b", "x", START + 1)])
    validate(config(folder))
    items = pq.read_table(HERE.validated / "items.parquet").to_pylist()
    assert items == [{"item_id": i, "title": i, "categories": []} for i in ("y", "x")]
    users = pq.read_table(HERE.validated / "users.parquet").to_pylist()
    assert users == [{"user_id": "b"}, {"user_id": "a"}]


def test_repeated_item_refuses_the_batch(folder):
    write_csv(folder / "log.csv", good_rows(50))
    rows = [(f"i{n}", "x") for n in [*range(11), 3]]
    write_csv(folder / "items.csv", rows, "item_id,title")
    with pytest.raises(UserError, match="item_id occurs more than once: found 'i3'"):
        validate(config(folder, items="items.csv"))


def test_too_many_bad_rows_refuse_the_batch_and_leave_the_evidence(folder, data_docs):
    bad = [("u", f"i{n}", START * 1000) for n in range(5)]
    write_csv(folder / "log.csv", good_rows(95) + bad)
    with pytest.raises(UserError) as refusal:
        validate(config(folder, limits={"max_bad_share": 0.04}))
    assert "found 0.05, expected at most 0.04" in str(refusal.value)
    assert "5 x timestamp is in milliseconds or finer; divide by 1000" in str(refusal.value)
    assert len(reasons(HERE.rejected)) == 5
    assert (HERE.rejected / "report.html").is_file()
    assert (HERE.rejected / "data_docs/index.html").is_file()
    assert not HERE.validated.exists() and not (HERE.accepted / "summary.json").exists()
    assert not (HERE.rejected / "events.parquet").exists()


def test_share_at_the_limit_is_accepted_and_clears_an_old_refusal(folder):
    write_csv(folder / "log.csv", [*good_rows(95), *[("", "i", START)] * 5])
    with pytest.raises(UserError):
        validate(config(folder, limits={"max_bad_share": 0.0}))
    validate(config(folder, limits={"max_bad_share": 0.05}))
    assert HERE.validated.is_dir() and not HERE.rejected.exists()


def test_header_alone_is_refused(folder):
    write_csv(folder / "log.csv", [])
    with pytest.raises(UserError, match="has no rows"):
        validate(config(folder))


@pytest.mark.parametrize("kept", [40, 160])
def test_changed_volume_refuses_the_batch(folder, kept):
    write_csv(folder / "log.csv", good_rows(100))
    validate(config(folder))
    newest = ("u", "i", START + 10**6)
    write_csv(folder / "log.csv", [*good_rows(kept), newest])
    with pytest.raises(UserError, match="rows against the last accepted batch"):
        validate(config(folder, limits={"max_volume_change": 0.5}))


def test_batch_older_than_the_last_accepted_is_refused(folder):
    write_csv(folder / "log.csv", good_rows(100))
    validate(config(folder))
    write_csv(folder / "log.csv", good_rows(90))
    with pytest.raises(UserError, match="newest event against the last accepted batch: found 600"):
        validate(config(folder))


def test_grown_log_is_accepted_and_compared_with_the_batch_before(folder):
    for count in (100, 120):
        write_csv(folder / "log.csv", good_rows(count))
        validate(config(folder))
    summary = read_json(HERE.validated / "summary.json")
    assert summary["last_accepted"]["accepted"] == 100
    assert summary["volume_change"] == pytest.approx(0.2)


def test_a_batch_that_was_taken_out_is_no_measure_for_the_mended_one(folder):
    write_csv(folder / "log.csv", good_rows(100))
    validate(config(folder))
    for name, count in (("0001-aaaaaaaaaaaa", 130), ("0001-bbbbbbbbbbbb", 120)):
        increment = folder / "increments" / name
        increment.mkdir(parents=True)
        write_csv(increment / "log.csv", good_rows(count)[100:])
        validate(config(folder))
        assert read_json(HERE.validated / "summary.json")["last_accepted"]["accepted"] == 100
        shutil.rmtree(increment)


def test_stale_log_is_refused_where_an_age_is_set(folder):
    write_csv(folder / "log.csv", good_rows(50))
    with pytest.raises(UserError, match="age of the newest event"):
        validate(config(folder, limits={"max_age_days": 7}))


def test_repeating_a_run_repeats_every_byte(folder, data_docs):
    def contents() -> dict[str, bytes]:
        files = (path for path in HERE.validated.rglob("*") if path.is_file())
        return {str(path.relative_to(HERE.validated)): path.read_bytes() for path in files}

    for count in (200, 250):  # the second is compared with the first, each time
        write_csv(folder / "log.csv", [*good_rows(count), ("", "i", START)])
        validate(config(folder))
    first = contents()
    shutil.rmtree(HERE.validated)
    time.sleep(1.1)
    validate(config(folder))
    assert contents() == first


def test_report_is_one_self_contained_page_that_escapes_what_it_shows(folder):
    write_csv(folder / "log.csv", [*good_rows(300), ("<script>alert(1)</script>", "i", -5)])
    validate(config(folder))
    page = (HERE.validated / "report.html").read_text()
    assert not re.search(r"<script|<link|@import|https?://|url\(", page)
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<rect") == 60


def test_data_docs_show_each_suite(folder, data_docs):
    write_csv(folder / "log.csv", [*good_rows(300), ("u", "i", -5)])
    validate(config(folder))
    pages = {path.stem for path in (HERE.validated / "data_docs/validations").rglob("*.html")}
    assert pages == {"events", "batch"}
    (page,) = (HERE.validated / "data_docs/validations").rglob("events.html")
    assert "-5" in page.read_text()


def test_summary_counts_agree_with_pandas(folder):
    rows = [*good_rows(500), *[("", "i", START + n) for n in range(3)]]
    write_csv(folder / "log.csv", rows)
    validate(config(folder))
    summary, events = read_json(HERE.validated / "summary.json"), accepted()
    assert (summary["rows"], summary["accepted"], summary["quarantined"]) == (503, 500, 3)
    assert summary["reasons"] == {"user_id is missing": 3}
    assert summary["users"] == events["user_id"].nunique()
    assert summary["items"] == events["item_id"].nunique()
    assert pd.Timestamp(summary["first_event"]).timestamp() == events["timestamp"].min()
    assert pd.Timestamp(summary["last_event"]).timestamp() == events["timestamp"].max()


row = st.tuples(
    st.sampled_from(["a", "b", ""]), st.sampled_from(["x", "y"]),
    st.sampled_from(["1", "1.0", "2", ""]), st.sampled_from(["view", "buy", ""]),
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(row, min_size=1, max_size=40))
def test_duplicates_across_chunks_are_those_of_pandas(tmp_path, rows):
    path = write_csv(tmp_path / "log.csv", rows, "user_id,item_id,timestamp,action")
    columns = {name: name for name in ("user_id", "item_id", "timestamp", "action")}
    chunks = (chunk.assign(part=0) for chunk in table_chunks(path, columns, chunk_rows=7))
    staging.stage(chunks, tmp_path / "staged.parquet")
    repeats = pd.DataFrame(rows).replace("1.0", "1").duplicated()  # one time, two spellings
    found, of_earlier_files = staging.copies(tmp_path / "staged.parquet")
    assert found.tolist() == repeats[repeats].index.tolist()
    assert not len(of_earlier_files)


def test_reasons_are_joined_in_the_order_of_the_rules():
    rules = row_rules(config(Path()).validate_)
    found = {rules[3].name: pa.array([0, 2]).to_numpy(), rules[1].name: pa.array([2]).to_numpy()}
    assert join_reasons(found, rules, 3).tolist() == [
        rules[3].name,
        "",
        f"{rules[1].name}; {rules[3].name}",
    ]
