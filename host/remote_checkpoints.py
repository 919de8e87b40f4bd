"""Checkpoints in DVC's remote: a training goes on elsewhere if its machine does not come back.

A checkpoint's folder, STAGE-KEY, is named by a hash of settings and inputs
(hpgr/training/checkpoint.py), so another training never resumes it. While a stage runs, each new
checkpoint is sent, the best weights before it: if a machine dies in between they are ahead of the
checkpoint, and training makes them again from there. Reads and writes checkpoints/ here and in
DVC's default remote.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from prefect import get_run_logger

from hpgr.workspace import HERE

FOLDER = HERE.checkpoints
# As in hpgr/training/checkpoint.py, whose import takes torch along.
NEWEST, BEST = "checkpoint.safetensors", "best.safetensors"
HEADER_LIMIT = 1 << 26
POLL_S = 2.0


@contextmanager
def kept_in_remote(stage: str) -> Iterator[None]:
    """Bring the stage's checkpoints, send new ones while the block runs, drop them when it is done.

    What cannot be sent is a warning: the training does not depend on it.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        remote = repo.cloud.get_remote()
    store = Store(stage, remote.fs, remote.fs.join(remote.path, FOLDER.name))
    for name in store.bring():
        get_run_logger().info("%s/%s comes from DVC's remote", FOLDER, name)
    done = threading.Event()
    arguments = (store, done, get_run_logger())
    sender = threading.Thread(target=_send_until, args=arguments, daemon=True)
    sender.start()
    try:
        yield
    finally:
        done.set()
        sender.join()
    _try(store.drop, get_run_logger())


def _send_until(store: Store, done: threading.Event, logger: Any) -> None:
    """Send until the stage is done, and once more: a stopped one writes a last checkpoint."""
    while not done.wait(POLL_S):
        _try(store.send, logger)
    _try(store.send, logger)


def _try(action: Any, logger: Any) -> None:
    try:
        action()
    except Exception as error:  # of whatever library the remote needs
        logger.warning("checkpoints in DVC's remote are not up to date: %s", error)


class Store:
    """The checkpoints of one stage, here and below `root` of another file system."""

    def __init__(self, stage: str, fs: Any, root: str) -> None:
        """`fs` is one of DVC's."""
        self._stage, self._fs, self._root = stage, fs, root
        self._kept: set[str] = set()  # folders that lie there
        self._sent: dict[Path, tuple[int, int]] = {}

    def bring(self) -> list[str]:
        """Fetch the folders whose checkpoint there is further than the one here; return them."""
        from dvc.fs import LocalFileSystem

        brought = []
        for name in self._folders():
            self._kept.add(name)
            there = _progress(self._fs, self._there(name, NEWEST))
            here = _progress(LocalFileSystem(), str(FOLDER / name / NEWEST))
            if there > here:
                self._fetch(name)
                brought.append(name)
            if there >= here:
                self._sent |= {p: _stamp(p.stat()) for p in _files(name) if p.exists()}
        return brought

    def send(self) -> None:
        """Send what was written since the last call."""
        for folder in sorted(FOLDER.glob(f"{self._stage}-*")):
            newest, best = _files(folder.name)
            with ExitStack() as opened, suppress(FileNotFoundError):
                # Opened in this order they fit together, whatever replaces them meanwhile.
                files = {newest: opened.enter_context(newest.open("rb"))}
                with suppress(FileNotFoundError):
                    files[best] = opened.enter_context(best.open("rb"))
                for path in reversed(files):
                    self._send(path, files[path])

    def drop(self) -> None:
        """Remove there what is no longer here: the trainings that came to their end."""
        for name in sorted(self._kept):
            if not (FOLDER / name).exists():
                self._fs.rm(self._there(name), recursive=True)
                self._kept.remove(name)

    def _folders(self) -> list[str]:
        try:
            names = [self._fs.name(path) for path in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.startswith(f"{self._stage}-"))

    def _fetch(self, name: str) -> None:
        """Bring one folder; the checkpoint is read first, and takes its name last."""
        coming = {}
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
        for path in _files(name):
            with suppress(FileNotFoundError):
                temporary = path.with_name(f".{path.name}.coming")
                self._fs.get_file(self._there(name, path.name), str(temporary))
                coming[path] = temporary
        for path in reversed(coming):
            coming[path].replace(path)

    def _send(self, path: Path, stream: BinaryIO) -> None:
        stamp = _stamp(os.fstat(stream.fileno()))
        if self._sent.get(path) == stamp:
            return
        name = path.parent.name
        self._kept.add(name)
        temporary = self._there(name, f".{path.name}.coming")
        self._fs.put_file(stream, temporary)
        self._fs.mv(temporary, self._there(name, path.name))
        self._sent[path] = stamp

    def _there(self, *names: str) -> str:
        return str(self._fs.join(self._root, *names))


def _files(name: str) -> tuple[Path, Path]:
    return FOLDER / name / NEWEST, FOLDER / name / BEST


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns


def _progress(fs: Any, path: str) -> tuple[int, ...]:
    """Step and epoch of a checkpoint; empty if it is not there, or damaged.

    A safetensors file begins with the length of its header, which is JSON.
    """
    try:
        with fs.open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, HEADER_LIMIT)))
        state = json.loads(header["__metadata__"]["state"])
        return state["step"], state["epoch"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()
