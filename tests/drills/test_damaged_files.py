"""Drill: files that are cut off or changed: checkpoints, artifacts, DVC's cache and lock file.

A stage that is handed a damaged file names it and the fix; the fix is then tried, and what comes
of it compared byte for byte with what was there before.
"""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from test_kills import SIGNAL_IN_TRAINING, weights
from workspace import (
    WEIGHTS,
    contents,
    copy,
    driven,
    dvc,
    hpgr,
    leftovers,
    no_traceback,
    one_message,
    run,
)

from hpgr.runtime import read_json


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change eight bytes well behind every header, and keep size and time."""
    stat = path.stat()
    whole = bytearray(path.read_bytes())
    whole[-64:-56] = bytes(byte ^ 0xFF for byte in whole[-64:-56])
    with path.open("r+b") as file:
        file.write(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def stopped(finished, tmp_path_factory):
    """A project whose pretraining was stopped at its twelfth step."""
    project = copy(finished, tmp_path_factory.mktemp("stopped") / "project")
    patch = SIGNAL_IN_TRAINING.replace("SIGNAL", "SIGTERM").replace("COUNT", "12")
    done = driven("pretrain", patch, project)
    assert done.returncode == 128 + signal.SIGTERM, done.output
    return project


@pytest.mark.parametrize(
    ("damage", "files", "expected"),
    [
        (cut, ["checkpoint"], "goes on at step 11 of 15"),
        (flip, ["checkpoint"], "goes on at step 11 of 15"),
        (empty, ["checkpoint", "previous"], "put aside"),
        (flip, ["best"], "put aside"),
    ],
    ids=["cut off", "flipped bytes", "both empty", "best weights flipped"],
)
def test_a_damaged_checkpoint_is_put_aside(stopped, tmp_path, damage, files, expected):
    """The one before it counts, or the run begins anew; the weights are the same in the end."""
    project = copy(stopped, tmp_path / "project")
    (scratch,) = (project / "checkpoints").iterdir()
    for name in files:
        damage(scratch / f"{name}.safetensors")
    done = hpgr("pretrain", cwd=project)
    assert done.returncode == 0, done.output
    for name in files:
        path = scratch.relative_to(project) / name
        assert re.search(
            rf"^WARNING: {path}\.safetensors is damaged \(.+\): put aside as {path}\.damaged; "
            "resuming from the state saved before it$",
            done.stdout,
            re.MULTILINE,
        )
    assert expected in done.stdout
    if expected == "put aside":
        assert "goes on at" not in done.stdout
    # Stopped again, nothing was lost: the artifact is still that of the whole run.
    assert weights(project, "pretrain") == weights(stopped, "pretrain")
    assert leftovers(project) == [] and not list((project / "checkpoints").iterdir())


DAMAGE: list[tuple[Callable[[Path], None], str, str, str]] = [
    (cut, "validated/events.parquet", "sessionize", "`dvc repro`"),
    (empty, "validated/items.parquet", "sessionize", "`dvc repro`"),
    (cut, "sessions/arrays/item.npy", "pretrain", "`dvc repro`"),
    (empty, "sessions/arrays/user_offsets.npy", "pretrain", "`dvc repro`"),
    (cut, "sessions/arrays/meta.json", "pretrain", "`dvc repro`"),
    (cut, "pretrain/model.safetensors", "finetune", "`dvc repro`"),
    (cut, "sessions/items.parquet", "evaluate", "`dvc repro`"),
    (cut, "finetune/model.safetensors", "evaluate", "`dvc repro`"),
    (cut, "finetune/config.json", "evaluate", "`dvc repro`"),
    (cut, "accepted/summary.json", "validate", "delete it"),
]


@pytest.fixture(scope="module")
def wreck(finished, tmp_path_factory):
    """A copy in which one file after another is damaged and put back."""
    return copy(finished, tmp_path_factory.mktemp("wreck") / "project")


@pytest.mark.parametrize(("damage", "file", "stage", "fix"), DAMAGE)
def test_a_stage_names_the_damaged_file_and_the_fix(wreck, damage, file, stage, fix):
    path = wreck / "artifacts" / file
    kept = path.read_bytes()
    output = (
        wreck / "artifacts" / {"validate": "validated", "sessionize": "sessions"}.get(stage, stage)
    )
    before = contents(output)
    damage(path)
    try:
        message = one_message(hpgr(stage, cwd=wreck))
    finally:
        path.write_bytes(kept)
    assert f"artifacts/{file} is damaged" in message
    assert fix in message
    assert contents(output) == before
    assert leftovers(wreck) == []


def test_dvc_repro_brings_every_damaged_artifact_back(project, finished):
    for damage, file, _, fix in DAMAGE:
        if "dvc" in fix:
            damage(project / "artifacts" / file)
    done = dvc("repro", "finetune", cwd=project)
    assert done.returncode == 0, done.output
    # from the cache, not trained
    assert "goes on" not in done.output and "step/s" not in done.output
    for folder in ("validated", "sessions", "pretrain", "finetune"):
        assert contents(project / "artifacts" / folder) == contents(finished / "artifacts" / folder)


def cached(project: Path, stage: str, file: str) -> Path:
    """The place in DVC's cache of a file of a stage's output."""
    store = project / ".dvc/cache/files/md5"
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    (folder,) = (out["md5"] for out in lock["stages"][stage]["outs"])
    listed = read_json(store / folder[:2] / folder[2:])
    (md5,) = (entry["md5"] for entry in listed if entry["relpath"] == file)
    return store / md5[:2] / md5[2:]


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_corrupted_cache_file_is_found_removed_and_made_anew(project, damage):
    """DVC trusts what it has write-protected, and puts it into the workspace as it is."""
    expected = weights(project, "pretrain")
    file = cached(project, "pretrain", WEIGHTS)
    damage(file)  # keeps the mode, as a failing disk does
    shutil.rmtree(project / "artifacts/pretrain")
    assert dvc("checkout", "artifacts/pretrain", cwd=project).returncode == 0
    assert weights(project, "pretrain") != expected
    done = hpgr("cache", cwd=project)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{file}: corrupted, removed", "now run: dvc repro"]
    done = dvc("repro", "finetune", cwd=project)
    assert done.returncode == 0, done.output
    assert weights(project, "pretrain") == expected
    assert "every file of DVC's cache" in hpgr("cache", cwd=project).stdout


FLOW_STAGE = """
from prefect.logging import disable_run_logger
from flows.dvc_stages import run_stage
with disable_run_logger():
    print("outcome:", run_stage.fn("sessionize"))
"""


def test_a_flow_makes_anew_what_comes_back_corrupted(project):
    """Flipped bits in an array change what is trained on, and no reader could tell."""
    sessions = project / "artifacts/sessions"
    expected = contents(sessions)
    file = cached(project, "sessionize", "arrays/item.npy")
    flip(file)
    shutil.rmtree(sessions)
    done = run(sys.executable, "-c", FLOW_STAGE, cwd=project)
    assert done.returncode == 0, done.output
    assert "outcome: ran" in done.stdout
    assert contents(sessions) == expected
    shutil.rmtree(sessions)
    assert "outcome: restored" in run(sys.executable, "-c", FLOW_STAGE, cwd=project).stdout
    assert contents(sessions) == expected


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_dvc_lock_is_reported_and_can_be_deleted(project, damage):
    """Without it DVC asks its run cache, and nothing runs again."""
    before = contents(project / "artifacts")
    damage(project / "dvc.lock")
    done = dvc("repro", "finetune", cwd=project)
    print(done.output)
    if done.returncode != 0:
        assert "dvc.lock" in done.output and no_traceback(done.output)
        (project / "dvc.lock").unlink()
        done = dvc("repro", "finetune", cwd=project)
    assert done.returncode == 0, done.output
    assert "step/s" not in done.output
    assert contents(project / "artifacts") == before


def test_a_compiled_module_that_is_cut_off(project):
    """Python's own leftovers on a full disk: it compiles a module and loses the end."""
    expected = weights(project, "pretrain")
    compiled = py_compile.compile(str(project / "hpgr/training/pretrain.py"), doraise=True)
    cut(Path(compiled))
    message = one_message(hpgr("pretrain", cwd=project))
    assert "cut off" in message and "run the same command again" in message
    done = hpgr("pretrain", cwd=project)
    assert done.returncode == 0, done.output
    assert weights(project, "pretrain") == expected
