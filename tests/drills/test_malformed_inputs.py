"""Drill: malformed input files. Each is accepted, quarantined or refused, and never half-written.

The cases and what must come of them are in `malformed_rows.py` and `malformed_files.py`. The stage
and the doctor run in this process, for speed; some run as the real command too, and so do the lines
of a gigabyte, whose memory is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import malformed_files
import malformed_rows
import pandas as pd
import pytest
from malformed import CASES, HEADER
from own_log import config
from workspace import HPGR, hpgr, no_traceback, run, write_params

from hpgr.intake.doctor import doctor
from hpgr.intake.expectations import Expectations
from hpgr.intake.validate import validate
from hpgr.runtime import UserError
from hpgr.workspace import HERE

MESSAGE_LINES = 25
ENTERED_BY = (malformed_rows, malformed_files)  # importing them fills CASES
GIGABYTE = 1 << 30
MEMORY = GIGABYTE  # of the whole process; the libraries alone take a third of it
# Prints the most memory that the command had. Started by something small: a process's peak counts
# from its fork on, and begins with what its parent, such as a long-lived test process, holds.
MEASURE = """
import resource, subprocess, sys
returncode = subprocess.call(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(returncode)
"""


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty raw folder in an empty project; Data Docs, half of the time, are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    (tmp_path / "raw").mkdir()
    return Path("raw")


def left_below(folder: str) -> set[str]:
    """Names of what a run left in the artifacts' folder."""
    found = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return {path.name for path in found if path.suffix != ".lock"}


@pytest.mark.parametrize("name", CASES)
def test_the_stage_accepts_quarantines_or_refuses(name, raw):
    case = CASES[name]
    limits = {} if case.refused else {"max_bad_share": 0.1}
    cfg = config(raw, limits=limits, **(case.write(raw) or {}))
    if case.refused:
        with pytest.raises(UserError) as refusal:
            validate(cfg)
        message = str(refusal.value)
        for words in case.refused:
            assert words in message
        assert message.count("\n") < MESSAGE_LINES
        # The evidence of a refusal, or nothing at all.
        assert left_below("artifacts") <= {HERE.rejected.name}
        assert not (HERE.accepted / "summary.json").exists()
        return
    validate(cfg)
    assert left_below("artifacts") == {HERE.validated.name, HERE.accepted.name}
    events = pd.read_parquet(HERE.validated / "events.parquet")
    assert len(events) == case.accepted
    found = events[["user_id", "item_id", "timestamp"]].head(len(case.events))
    assert tuple(found.itertuples(index=False, name=None)) == case.events
    quarantine = pd.read_parquet(HERE.validated / "quarantine.parquet")
    assert quarantine["reason"].value_counts().to_dict() == (case.reasons or {})


@pytest.mark.parametrize("name", CASES)
def test_the_doctor_says_the_same(name, raw):
    case = CASES[name]
    problems = doctor(raw, config(raw, **(case.write(raw) or {})))
    if not case.refused and not case.reasons:
        assert not any(p.serious for p in problems)
        return
    message = "\n".join(map(str, problems))
    for words in case.doctor or case.refused or case.reasons:
        assert words in message
    assert message.count("\n") < MESSAGE_LINES


def table(folder: Path, **data) -> None:
    """params.yaml of a project whose log is `raw/log.csv`."""
    write_params(folder, data={"path": "raw", "format": "table", "interactions": "log.csv", **data})


@pytest.mark.parametrize("name", ["every_row_bad", "truncated_gzip"])
def test_the_command_ends_with_one_message_and_code_2(name, raw):
    table(Path(), **(CASES[name].write(raw) or {}))
    done = hpgr("validate", cwd=Path())
    assert done.returncode == 2
    assert no_traceback(done.stderr)
    message = done.stderr[done.stderr.index("error: ") :]
    assert all(words in message for words in CASES[name].refused)
    assert left_below("artifacts") <= {HERE.rejected.name}


@pytest.mark.parametrize("name", ["every_row_bad"])
def test_the_doctors_command_fails_where_the_stage_will(name, raw):
    table(Path(), **(CASES[name].write(raw) or {}))
    done = hpgr("doctor", cwd=Path())
    assert done.returncode == 1
    assert no_traceback(done.stderr)
    assert any(words in done.stdout for words in CASES[name].doctor or CASES[name].refused)


@pytest.mark.parametrize("head", [f"{HEADER}\nu,i,1600000000\nu,", "user_id,item_id,"])
@pytest.mark.parametrize("command", ["validate", "doctor"])
def test_a_line_of_a_gigabyte_costs_no_memory(command, head, raw):
    with (raw / "log.csv").open("w") as file:
        file.write(head + "x" * 10_000)
        file.truncate(GIGABYTE)  # a hole: it reads as a gigabyte without a line end
    table(Path())
    done = run(sys.executable, "-c", MEASURE, *HPGR, command, cwd=Path())
    assert done.returncode == (2 if command == "validate" else 1)
    assert no_traceback(done.output)
    assert "1,048,576 characters" in done.output and "line breaks" in done.output
    assert int(done.stdout.split()[-1]) < MEMORY
    assert not left_below("artifacts")
