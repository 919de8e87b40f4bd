"""Taking a batch in: what an interruption at each point leaves, and how the next run settles it."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from own_log import config, good_rows, write_csv

from flows import refresh
from flows.faults import StageFailed
from hpgr.intake import acceptance
from hpgr.intake.incoming import BatchFinding
from hpgr.intake.increments import increments
from hpgr.runtime import DamagedFile, read_json, write_json
from hpgr.workspace import HERE

PIN = "outs:\n- path: data\n  md5: before\n"
NAME = "0001-abcdefabcdef"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The data section of a project with a pinned log."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data/shop")
    folder.mkdir(parents=True)
    write_csv(folder / "log.csv", good_rows(5))
    HERE.data_pin.write_text(PIN)
    return config(folder).data


@pytest.fixture
def verdict(tmp_path: Path) -> BatchFinding:
    """An accepted batch."""
    files = {"log.csv": write_csv(tmp_path / "new.csv", good_rows(3))}
    entry = {"batch": "abcdefabcdef", "source": "new.csv", "accepted": True, "reasons": []}
    return BatchFinding("abcdefabcdef", files, entry, (), (), None)


def state(data) -> tuple[list[str], str, list[dict]]:
    names = [path.name for path in increments(data.path)]
    return names, HERE.data_pin.read_text(), acceptance.records()


def validated_with(*files: str) -> None:
    write_json(HERE.validated / "summary.json", {"inputs": dict.fromkeys(files, "sha256")})


def test_a_batch_that_comes_through_is_noted_once(data, verdict):
    acceptance.begin(data, verdict)
    acceptance.note()
    acceptance.finish()
    assert state(data) == ([NAME], PIN, [verdict.record])
    assert not acceptance.is_taking()
    assert acceptance.settle(data) is None


def test_a_batch_that_the_log_refuses_goes_without_a_trace_but_its_record(data, verdict):
    acceptance.begin(data, verdict)
    HERE.data_pin.write_text("moved")
    acceptance.undo(data, reason="too much")
    refused = {**verdict.record, "accepted": False, "reasons": ["too much"]}
    assert state(data) == ([], PIN, [refused])
    assert not (data.path / "increments").exists()


def interrupted_while_copying(data, verdict, patch):
    def stop(*_):
        raise KeyboardInterrupt

    patch.setattr("shutil.copyfile", stop)
    with pytest.raises(KeyboardInterrupt):
        acceptance.begin(data, verdict)
    # A killed process does not even clean up behind itself.
    (data.path / "increments" / f".{NAME}.x1y2").mkdir()


def interrupted_before_the_pin(data, verdict, patch):
    acceptance.begin(data, verdict)


def interrupted_before_validation(data, verdict, patch):
    acceptance.begin(data, verdict)
    HERE.data_pin.write_text("moved")
    validated_with("log.csv")


def interrupted_in_validation(data, verdict, patch):
    acceptance.begin(data, verdict)
    HERE.data_pin.write_text("moved")  # DVC has deleted artifacts/validated/


@pytest.mark.parametrize(
    "interrupted",
    [
        interrupted_while_copying,
        interrupted_before_the_pin,
        interrupted_before_validation,
        interrupted_in_validation,
    ],
)
def test_an_interrupted_batch_is_undone_by_the_next_run(data, verdict, monkeypatch, interrupted):
    with monkeypatch.context() as patch:
        interrupted(data, verdict, patch)
    assert "undone" in acceptance.settle(data)
    assert state(data) == ([], PIN, [])
    assert not (data.path / "increments").exists()
    assert acceptance.settle(data) is None


@pytest.mark.parametrize("noted", [False, True])
def test_a_batch_that_was_validated_stays_until_training_begins(data, verdict, noted):
    acceptance.begin(data, verdict)
    HERE.data_pin.write_text("moved")
    validated_with("log.csv", f"increments/{NAME}/log.csv")
    if noted:
        acceptance.record(verdict.record)
    assert "took in" in acceptance.settle(data)
    assert state(data) == ([NAME], "moved", [verdict.record])
    assert acceptance.is_taking()
    acceptance.finish()
    assert state(data) == ([NAME], "moved", [verdict.record])
    assert not acceptance.is_taking()


@pytest.mark.parametrize("refused", [True, False])
def test_a_fault_on_the_way_says_nothing_of_the_batch(data, verdict, monkeypatch, refused):
    """Only where the validate stage left its evidence was it the batch."""

    def fails(_):
        if refused:
            HERE.rejected.mkdir(parents=True, exist_ok=True)
            monkeypatch.setattr(refresh, "reproduce", lambda _: None)
        raise StageFailed("killed")

    monkeypatch.setattr(refresh, "load_config", lambda: SimpleNamespace(data=data))
    monkeypatch.setattr(refresh, "get_run_logger", lambda: logging.getLogger())
    monkeypatch.setattr(refresh, "place", lambda verdict: acceptance.begin(data, verdict))
    monkeypatch.setattr(refresh, "reproduce", fails)
    with pytest.raises(StageFailed, match="is refused" if refused else "^killed$"):
        refresh.take_in(verdict)
    assert [entry["accepted"] for entry in acceptance.records()] == [False] * refused
    assert state(data)[:2] == ([], PIN)


@pytest.mark.parametrize(
    ("name", "fix"), [("batches.json", "delete it"), ("taking.json", "bring data/ back")]
)
def test_a_damaged_record_is_reported_with_its_own_fix(data, name, fix):
    path = HERE.accepted / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[{")
    with pytest.raises(DamagedFile, match=rf"{name} is damaged .*: {fix}"):
        acceptance.records() if name == "batches.json" else acceptance.settle(data)


def test_batches_are_listed_in_order_and_the_last_accepted_is_found(data):
    assert acceptance.last_accepted() is None
    for batch, accepted in (("a", True), ("b", True), ("c", False)):
        acceptance.record({"batch": batch, "accepted": accepted})
    assert [entry["batch"] for entry in read_json(acceptance.records_file())] == ["a", "b", "c"]
    assert acceptance.last_accepted()["batch"] == "b"
