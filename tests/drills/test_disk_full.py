"""Drill: the disk is full while a stage writes; with room again the same command goes on.

The project lies on a small file system of its own, filled to the last kilobytes. Who may not mount
one mostly may in a namespace of their own, where the same tests then run. A limit on the size of
files needs no right at all: the same paths, another error number.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from workspace import (
    ROOT,
    STAGES,
    contents,
    copy,
    driven,
    dvc,
    hpgr,
    leftovers,
    no_traceback,
    one_message,
)

NAMESPACE = ("unshare", "--map-root-user", "--mount")
DISK_MB = 64
SPARE_KB = 24  # enough to begin, too little to end
OUTPUTS = {"validate": "validated", "sessionize": "sessions", "evaluate": "evaluation"}
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
"""


class SmallDisk:
    """A file system that holds a project, and a file that takes the rest of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def fill(self, spare_kb: int) -> None:
        """Leave `spare_kb` free."""
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        size = self._filler.stat().st_size
        with self._filler.open("r+b") as file:
            file.truncate(max(size - (spare_kb << 10), 0))

    def free(self) -> None:
        self._filler.unlink()


def mount(folder: Path, *within: str) -> str:
    """Mount a file system of DISK_MB; returns why that was not possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    made = subprocess.run([*within, *command], capture_output=True, text=True, check=False)
    return made.stderr.strip() if made.returncode != 0 else ""


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A file system of DISK_MB at `folder`."""
    folder.mkdir(exist_ok=True)
    if why := mount(folder):
        pytest.skip(f"no right to mount a small disk ({why}); see the namespace below")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def disk(finished, tmp_path_factory) -> Iterator[SmallDisk]:
    folder = tmp_path_factory.mktemp("disk")
    with mounted(folder):
        yield SmallDisk(copy(finished, folder / "project"))


def outputs(stage: str, project: Path) -> Path:
    return project / "artifacts" / OUTPUTS.get(stage, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_full_disk(disk, stage):
    project = disk.folder
    before = contents(outputs(stage, project))
    disk.fill(SPARE_KB)
    try:
        message = one_message(hpgr(stage, cwd=project))
    finally:
        disk.free()
    assert "no room left to write" in message and "MB free in" in message
    assert "Make room there" in message and "run the same command again" in message
    assert contents(outputs(stage, project)) == before
    assert leftovers(project) == []
    done = hpgr(stage, cwd=project)
    assert done.returncode == 0, done.output
    if before:
        assert contents(outputs(stage, project)) == before


def test_training_goes_on_from_the_checkpoint_that_found_room(disk):
    """The disk fills up in mid-training."""
    project = disk.folder
    before = contents(outputs("pretrain", project))
    patch = FILL_AT_STEP.replace("FILLER", repr(str(project / "filler")))
    message = one_message(driven("pretrain", patch, project))
    disk.free()
    assert "no room left to write checkpoints/" in message
    done = hpgr("pretrain", cwd=project)
    assert done.returncode == 0, done.output
    assert "pretrain: goes on at step 7 of 15" in done.stdout
    assert contents(outputs("pretrain", project)) == before
    assert leftovers(project) == []


FILL_AT_STEP = """
from hpgr.training.adamw import AdamW
step, seen = AdamW.step, 0
def filling(self, *arguments, **options):
    global seen
    seen += 1
    if seen == 8:
        with open(FILLER, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    return step(self, *arguments, **options)
AdamW.step = filling
"""


def test_dvc_without_room_for_its_cache_says_so_and_mends_it_later(finished, project):
    """The outputs fit, their copies in the cache do not: an error, though with exit code 0."""
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("min_user_events: 3", "min_user_events: 4"))
    cache = project / ".dvc/cache"
    shutil.rmtree(cache)
    with mounted(cache):
        copy(finished / ".dvc/cache", cache)
        small = SmallDisk(cache)
        small.fill(0)
        done = dvc("repro", "sessionize", cwd=project)
        assert "No space left on device" in done.output
        assert no_traceback(done.output)
        small.free()
        again = dvc("repro", "sessionize", cwd=project)
        assert again.returncode == 0, again.output
        whole = contents(outputs("sessionize", project))
        shutil.rmtree(outputs("sessionize", project))
        assert dvc("checkout", "artifacts/sessions", cwd=project).returncode == 0
        assert contents(outputs("sessionize", project)) == whole
    assert leftovers(project) == []


@pytest.mark.parametrize(("stage", "size"), [("sessionize", 4000), ("pretrain", 30_000)])
def test_a_limit_on_files_reads_the_same(project, stage, size):
    before = contents(outputs(stage, project))
    message = one_message(
        driven(stage, LIMITED.replace("(LIMIT, LIMIT)", f"({size}, {size})"), project)
    )
    assert "no room left to write" in message
    assert contents(outputs(stage, project)) == before
    assert leftovers(project) == []


def test_who_may_not_mount_runs_it_all_in_a_namespace(tmp_path):
    if not mount(tmp_path):
        subprocess.run(["umount", str(tmp_path)], check=True)
        pytest.skip("the tests above could mount")
    if why := mount(tmp_path, *NAMESPACE):
        pytest.skip(f"no right to mount in a namespace either ({why})")
    chosen = ["-k", "not limit and not namespace", f"--basetemp={tmp_path / 'base'}", __file__]
    pytest_there = [*NAMESPACE, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(pytest_there, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout
