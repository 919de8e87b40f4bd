"""Corrupted files of DVC's cache: their content no longer matches the hash in their name.

DVC write-protects what it stores and trusts it from then on: it restores what a disk has changed
without a warning, and dvc.lock then records it. Reads the cache that `dvc cache dir` names. Removes
only files whose content does not match their name, which are useless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import yaml

from hpgr.folder import require_repository
from hpgr.runtime import UserError, read_json
from hpgr.workspace import HERE, Workspace


def clean_cache(stage: str | None = None, workspace: Workspace = HERE) -> list[Path]:
    """Remove the corrupted files of DVC's cache, or of one stage's outputs, and return them.

    Raises:
        UserError: this folder is no DVC repository.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(workspace.root)) as repo:
            store = Path(repo.cache.local.path)
    except DvcException as error:
        require_repository()
        raise UserError(f"DVC's cache cannot be found: {error}") from error
    files: Iterator[Path]
    if stage is None:
        files = store.glob("[0-9a-f][0-9a-f]/*")
    else:
        files = outputs(store, stage, workspace.dvc_lock)
    found = [path for path in sorted(files) if is_corrupted(path)]
    for path in found:
        path.unlink()
    return found


def outputs(store: Path, stage: str, lock: Path) -> Iterator[Path]:
    """Yield the files below `store` that hold the outputs of a stage, as dvc.lock names them."""
    recorded = yaml.safe_load(lock.read_text())["stages"][stage]
    for out in recorded.get("outs", []):
        path = store / out["md5"][:2] / out["md5"][2:]
        yield path
        if path.suffix == ".dir" and path.is_file() and not is_corrupted(path):
            for entry in read_json(path):
                yield store / entry["md5"][:2] / entry["md5"][2:]


def is_corrupted(path: Path) -> bool:
    """Return True if a file's md5 is not its name (two digits of folder, the rest, `.dir`)."""
    name = path.parent.name + path.name.removesuffix(".dir")
    if len(name) != 32 or not path.is_file():  # a file that is being written
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() != name
