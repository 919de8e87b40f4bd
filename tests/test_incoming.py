"""A batch of new events against the contract and against the log it would join.

One test a limit: each batch breaks that limit alone, and the message says which.
"""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest
from own_log import START, config, write_csv

from hpgr.intake import acceptance
from hpgr.intake.expectations import Expectations
from hpgr.intake.incoming import BatchFinding, examine
from hpgr.intake.increments import batch_files, batch_tables, digest, place
from hpgr.intake.validate import validate
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE

HEADER = "user_id,item_id,timestamp,stars"
HOUR = 3600
LOG_EVENTS, BATCH_EVENTS = 3000, 600


def events(first: int, count: int, *, start: int = START, seed: int = 0) -> list[tuple]:
    """One event every 10 minutes: few items take most events, most ratings are high."""
    draw = random.Random(seed)
    return [
        (
            f"u{draw.randrange(60)}",
            f"i{int(100 * draw.random() ** 6)}",
            start + 600 * n,
            draw.choice([5, 5, 5, 4, 4, 1]),
        )
        for n in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose log is validated."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Expectations, "write_docs", lambda *_, **__: None)
        Path("data/shop").mkdir(parents=True)
        write_csv(Path("data/shop/log.csv"), events(0, LOG_EVENTS), HEADER)
        write_csv(
            Path("data/shop/items.csv"), [(f"i{n}", f"I {n}") for n in range(100)], "item_id,title"
        )
        validate(shop())
    return folder


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, as the current folder; a test must leave its log as it is."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    return project


def shop(limits: dict | None = None, **refresh):
    cfg = config(
        Path("data/shop"), columns={"action": "stars"}, items="items.csv", limits=limits or {}
    )
    return cfg.model_copy(update={"refresh": cfg.refresh.model_copy(update=refresh)})


def following(count: int = BATCH_EVENTS) -> list[tuple]:
    """Events that go on where the log ends."""
    return events(LOG_EVENTS, count, seed=1)


def judge(
    tmp_path: Path, rows: list[tuple], cfg=None, items: list[tuple] | None = None
) -> BatchFinding:
    source = tmp_path / "batch"
    source.mkdir(exist_ok=True)
    write_csv(source / "log.csv", rows, HEADER)
    if items is not None:
        write_csv(source / "items.csv", items, "item_id,title")
    return examine(cfg or shop(), source, evidence=False)


def names(verdict: BatchFinding) -> list[str]:
    return [reason.partition(":")[0] for reason in verdict.reasons]


def test_what_goes_on_as_the_log_did_is_accepted(folder, tmp_path):
    verdict = judge(tmp_path, following())
    assert verdict.reasons == ()
    record = verdict.record
    assert record["accepted"] and record["reasons"] == []
    assert (record["rows"], record["late"], record["repeated"]) == (BATCH_EVENTS, 0, 0)
    assert record["first_timestamp"] == START + 600 * LOG_EVENTS
    assert record["events_per_day"] == pytest.approx(144, rel=0.01)
    assert record["item_drift"] < 0.05 and record["action_drift"] < 0.05


def test_the_record_has_what_the_monitoring_page_reads(folder, tmp_path):
    assert set(judge(tmp_path, following()).record) >= {
        *("batch", "source", "received_at", "accepted", "reasons", "rows", "quarantined_share"),
        *("first_timestamp", "last_timestamp", "events_per_day"),
        *("item_drift", "action_drift", "unknown_items"),
    }


def test_nothing_is_written_but_the_evidence_that_was_asked_for(folder, tmp_path):
    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}

    before = contents()
    judge(tmp_path, [(*row[:2], row[2] * 1000, row[3]) for row in following()])
    assert contents() == before
    examine(shop(max_volume_change=1.1), tmp_path / "batch", evidence=True)
    try:
        assert len(pd.read_parquet(HERE.rejected / "quarantine.parquet")) == BATCH_EVENTS
        assert "Refused" in (HERE.rejected / "report.html").read_text()
        assert read_json(HERE.rejected / "summary.json")["path"] == str(tmp_path / "batch")
        assert not (HERE.rejected / "events.parquet").exists()
    finally:
        for path in HERE.rejected.iterdir():
            path.unlink()
        HERE.rejected.rmdir()
    assert contents() == before


def test_exchanged_ids_are_drift_of_the_items(folder, tmp_path):
    rows = [(u, f"i{99 - int(i[1:])}", t, a) for u, i, t, a in following()]
    verdict = judge(tmp_path, rows)
    assert names(verdict) == ["drift of the items"]
    assert "refresh.max_item_drift" in verdict.refusal()


def test_inverted_ratings_are_drift_of_the_actions(folder, tmp_path):
    rows = [(u, i, t, 6 - a) for u, i, t, a in following()]
    assert names(judge(tmp_path, rows)) == ["drift of the actions"]


def test_items_the_log_does_not_have_are_a_share(folder, tmp_path):
    rows = [(u, f"n{i}" if n % 2 else i, t, a) for n, (u, i, t, a) in enumerate(following())]
    items = [(f"ni{n}", "New") for n in range(100)]
    verdict = judge(tmp_path, rows, items=items)
    assert names(verdict) == ["share of events with items that the log does not have"]
    assert verdict.record["unknown_items"] == 0.5


def test_exact_duplicates_of_a_batch_are_counted_but_no_fault(folder, tmp_path):
    rows = following()
    verdict = judge(tmp_path, [*rows, *rows[:60]])
    assert verdict.reasons == ()
    assert (verdict.record["duplicates"], verdict.record["quarantined_share"]) == (60, 0)
    assert "60 exact duplicates" in verdict.figures()


def test_new_items_need_a_row_in_the_batchs_own_table(folder, tmp_path):
    rows = [*following(), ("u1", "brand-new", START + 600 * 4000, 5)]
    assert judge(tmp_path, rows).record["quarantined_share"] == pytest.approx(1 / 601)
    verdict = judge(tmp_path, rows, items=[("brand-new", "Brand new")])
    assert verdict.record["quarantined_share"] == 0


@pytest.mark.parametrize("factor", [6, 1 / 6])
def test_another_volume_is_refused(folder, tmp_path, factor):
    start = START + 600 * LOG_EVENTS
    rows = [(u, i, int(start + (t - start) / factor), a) for u, i, t, a in following()]
    assert names(judge(tmp_path, rows)) == ["events a day against the newest of the log"]


def test_a_batch_that_ends_before_the_log_is_refused(folder, tmp_path):
    rows = [(u, i, t - 5, a) for u, i, t, a in events(0, LOG_EVENTS, seed=3)]
    assert names(judge(tmp_path, rows)) == ["seconds from the batch's newest event to the log's"]


def test_bad_rows_are_reported_with_their_fix(folder, tmp_path):
    rows = [(u, i, t * 1000 if n % 20 == 0 else t, a) for n, (u, i, t, a) in enumerate(following())]
    verdict = judge(tmp_path, rows)
    assert names(verdict) == ["share of quarantined rows"]
    assert "30 x timestamp is in milliseconds or finer; divide by 1000" in verdict.refusal()


def test_every_broken_limit_is_reported_at_once(folder, tmp_path):
    rows = [(u, f"n{i}", t, 6 - a) for u, i, t, a in following()]
    verdict = judge(tmp_path, rows, items=[(f"ni{n}", "New") for n in range(100)])
    assert names(verdict) == [
        "drift of the actions",
        "share of events with items that the log does not have",
    ]


def test_overlap_is_reported_and_allowed(folder, tmp_path):
    rows = [*events(0, LOG_EVENTS)[-100:], *following()]
    record = judge(tmp_path, rows).record
    assert record["accepted"]
    assert (record["rows"], record["repeated"], record["late"]) == (700, 100, 0)
    assert record["first_timestamp"] == START + 600 * LOG_EVENTS


def test_a_repeated_event_is_known_in_another_spelling_of_its_time(folder, tmp_path):
    again = [(u, i, f"{t}.0", a) for u, i, t, a in events(0, LOG_EVENTS)[-100:]]
    record = judge(tmp_path, [*again, *following()]).record
    assert (record["accepted"], record["rows"], record["repeated"]) == (True, 700, 100)


@pytest.mark.parametrize("rows", [BATCH_EVENTS * 6, BATCH_EVENTS // 6])
def test_a_batch_cut_off_or_doubled_is_refused(folder, tmp_path, rows):
    acceptance.record({"batch": "before", "accepted": True, "rows": rows})
    acceptance.record({"batch": "refused", "accepted": False, "rows": BATCH_EVENTS})
    try:
        assert names(judge(tmp_path, following())) == ["rows against the batch accepted last"]
    finally:
        acceptance.records_file().unlink()


def test_late_events_are_reported_and_allowed(folder, tmp_path):
    late = [("late", i, t - 600 * 1000 + 1, a) for _, i, t, a in following(50)]
    record = judge(tmp_path, [*late, *following()], shop(max_volume_change=100)).record
    assert record["accepted"] and record["late"] == 50


def test_a_batch_with_nothing_new_is_refused(folder, tmp_path):
    verdict = judge(tmp_path, events(0, LOG_EVENTS)[-100:])
    assert names(verdict) == ["no row is accepted"]


def test_a_header_alone_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"log\.csv has no rows"):
        judge(tmp_path, [])


def test_a_repeated_item_is_refused(folder, tmp_path):
    verdict = judge(tmp_path, following(), items=[("x", "1"), ("x", "2")])
    assert names(verdict) == ["item_id occurs more than once"]


def test_a_batch_that_was_taken_in_is_known(folder, tmp_path):
    cfg, path = shop(), write_csv(tmp_path / "any name.csv", following(), HEADER)
    files = batch_files(cfg.data, batch_tables(cfg.data, path))
    where = place(cfg.data.path, f"0001-{digest(files)}", files)
    try:
        assert examine(cfg, path, evidence=False).taken == where
    finally:
        (where / "log.csv").unlink()
        where.rmdir()
        where.parent.rmdir()


def test_a_log_that_changed_since_it_was_validated_must_be_validated_first(folder, tmp_path):
    log = Path("data/shop/log.csv")
    text = log.read_text()
    try:
        log.write_text(text + "u1,i1,1700000000,5\n")
        with pytest.raises(UserError, match=r"another state of the log.*dvc repro validate"):
            judge(tmp_path, following())
    finally:
        log.write_text(text)


def test_without_a_validated_log_there_is_nothing_to_compare_with(folder, tmp_path):
    summary = HERE.validated / "summary.json"
    aside = summary.rename(summary.with_suffix(".aside"))
    try:
        with pytest.raises(UserError, match=r"not found.*dvc repro validate"):
            judge(tmp_path, following())
    finally:
        aside.rename(summary)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "not found: give the file or folder"),
        (lambda p: Path("data/shop"), r"lies in data, which data\.dvc pins"),
        (lambda p: write_csv(p / "x.parquet", []), r"expected the format of data/shop/log\.csv"),
        (lambda p: write_csv(p / "logs.csv", []).parent, r"holds logs\.csv: expected log\.csv"),
        (lambda p: write_csv(p / "items.csv", []).parent, r"holds no events: expected log\.csv"),
    ],
)
def test_what_is_no_batch_is_named(folder, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        batch_tables(shop().data, make(tmp_path))
