"""Runs in several workspaces from one process: each writes below its own root and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from own_log import START, config, write_csv
from sample_log import TESTED, contents

from hpgr.config import Config
from hpgr.data.sessionize import sessionize
from hpgr.intake.expectations import Expectations
from hpgr.intake.validate import validate
from hpgr.runtime import UserError
from hpgr.workspace import Workspace

# Square brackets are a pattern to DuckDB: "run[1]" must not be read as "run1".
ROOTS = ("run1", "run[1]")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, which must stay empty."""
    monkeypatch.setattr(Expectations, "write_docs", lambda *_, **__: None)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert not list(folder.iterdir())


def shop(tmp_path: Path, name: str, users: int, **sessionized) -> Config:
    """The configuration for a log in which each of `users` has five events."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    rows = [(f"{name}{u}", f"i{n}", START + 60 * n + u) for u in range(users) for n in range(5)]
    write_csv(folder / "log.csv", rows)
    cfg = config(folder)
    settings = cfg.sessionize.model_copy(update={**TESTED, **sessionized})
    return cfg.model_copy(update={"sessionize": settings})


def test_each_run_has_its_own_log_and_leaves_the_other_alone(tmp_path):
    runs = [
        (Workspace(tmp_path / root), name, users)
        for root, name, users in zip(ROOTS, "ab", (3, 4), strict=True)
    ]
    before = []
    for workspace, name, users in runs:
        cfg = shop(tmp_path, name, users)
        validate(cfg, workspace)
        sessionize(cfg, workspace)
        before.append(contents(workspace.root))
    for (workspace, name, users), files in zip(runs, before, strict=True):
        assert contents(workspace.root) == files
        assert {Path(file).parts[0] for file in files} == {"artifacts"}
        found = pd.read_parquet(workspace.sessions / "users.parquet")["user_id"]
        assert sorted(found) == [f"{name}{u}" for u in range(users)]


def test_runs_share_a_validated_log_and_differ_in_what_they_make_of_it(tmp_path):
    first = Workspace(tmp_path / "first")
    validate(shop(tmp_path, "a", 3), first)
    shared = contents(first.root)
    sessions = []
    for number, gap_s in enumerate((1, 1800)):
        cell = Workspace(tmp_path / f"cell{number}", validated_log=first.validated)
        sessionize(shop(tmp_path, "a", 3, gap_s=gap_s), cell)
        events = pd.read_parquet(cell.sessions / "events.parquet")
        sessions.append(len(events.groupby(["user", "session"])))
        assert not (cell.root / "artifacts/validated").exists()
    assert sessions == [15, 3]
    assert contents(first.root) == shared


def test_a_refused_log_is_reported_below_its_own_root(tmp_path):
    workspace, other = Workspace(tmp_path / "bad"), Workspace(tmp_path / "good")
    cfg = shop(tmp_path, "a", 3)
    validate(cfg, other)
    limits = cfg.validate_.model_copy(update={"min_timestamp": START + 10**6})
    strict = cfg.model_copy(update={"validate_": limits})
    with pytest.raises(UserError, match=re.escape(str(workspace.rejected / "report.html"))):
        validate(strict, workspace)
    assert (workspace.rejected / "quarantine.parquet").is_file()
    assert not workspace.validated.exists() and not workspace.accepted.exists()
    assert not other.rejected.exists()


def test_a_log_is_compared_with_the_one_that_its_own_workspace_accepted(tmp_path):
    knows, new = Workspace(tmp_path / "knows"), Workspace(tmp_path / "new")
    validate(shop(tmp_path, "a", 3), knows)
    grown = shop(tmp_path, "a", 30)
    validate(grown, new)
    with pytest.raises(UserError, match="rows against the last accepted batch"):
        validate(grown, knows)
