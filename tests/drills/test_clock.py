"""Drill: the clock is wrong: it goes back during a stage, lies behind the log, or was ahead."""

from __future__ import annotations

import csv
import os
import time

from workspace import START, contents, driven, dvc, hpgr, leftovers, one_message

# Every look at the clock shows an hour less than the one before.
BACKWARDS = """
looks, now = 0, time.time
def backwards():
    global looks
    looks += 1
    return now() - 3600 * looks
time.time = backwards
"""
BEHIND = f"import time\ntime.time = lambda: {START - 30 * 86400}.0\n"
YEARS_S = 10 * 365 * 86400


def test_training_does_not_mind_a_clock_that_goes_back(project):
    output = project / "artifacts/pretrain"
    before = contents(output)
    done = driven("pretrain", BACKWARDS, project)
    assert done.returncode == 0, done.output
    assert contents(output) == before
    with (output / "resources.csv").open() as file:
        rows = list(csv.DictReader(file))
    times = [float(row["time"]) for row in rows]
    assert times == sorted(times)
    assert times[-1] - times[0] < 600  # an hour less, or more, at every look otherwise
    assert all(float(row["cpu_percent"]) >= 0 and float(row["memory_mb"]) > 10 for row in rows)


def test_a_clock_behind_the_log_is_reported_and_nothing_is_lost(project):
    """Every event is in the future then; with the right clock the same log is accepted."""
    output = project / "artifacts/validated"
    before = contents(output)
    message = one_message(driven("validate", BEHIND, project))
    assert "720 x timestamp is in the future; correct the clock or the time zone" in message
    assert contents(output) == before
    done = hpgr("validate", cwd=project)
    assert done.returncode == 0, done.output
    assert contents(output) == before
    assert leftovers(project) == []


def test_a_log_accepted_ahead_of_time_is_accepted_again(project):
    """The clock was a year ahead at the first run: what was remembered does not depend on it."""
    remembered = (project / "artifacts/accepted/summary.json").read_bytes()
    ahead = f"now = time.time\ntime.time = lambda: now() + {YEARS_S / 10}\n"
    done = driven("validate", ahead, project)
    assert done.returncode == 0, done.output
    assert (project / "artifacts/accepted/summary.json").read_bytes() == remembered


def test_files_from_the_future_run_nothing_again(project):
    """As after a clock that was ahead when the files were written."""
    later = time.time() + YEARS_S
    code, artifacts = (project / "hpgr").rglob("*.py"), (project / "artifacts").rglob("*")
    for path in (project / "params.yaml", *code, *artifacts):
        os.utime(path, (later, later))
    done = dvc("repro", "finetune", cwd=project)
    assert done.returncode == 0, done.output
    assert done.output.count("didn't change, skipping") == 5  # data.dvc and four stages
