"""DVC's cache, read back: a file whose bytes are no longer those of its name.

DVC write-protects what it stores and trusts it from then on: what a disk has changed comes back
into the workspace without a word, and dvc.lock then records it. Reads the cache that
`dvc cache dir` names. Removes only files that are not what their names say, which nobody can use.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hpgr.runtime import UserError


def clean_cache() -> list[Path]:
    """Remove the corrupted files of DVC's cache and return them.

    Raises:
        UserError: this folder is no DVC repository.
    """
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"dvc cache dir: {done.stderr.strip()}")
    found = list(corrupted(Path(done.stdout.strip()) / "files" / "md5"))
    for path in found:
        path.unlink()
    return found


def corrupted(store: Path) -> Iterator[Path]:
    """Files below `store` whose md5 is not their name (two digits of folder, the rest, `.dir`)."""
    for path in sorted(store.glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name.removesuffix(".dir")
        if len(name) != 32:  # a file that is being written
            continue
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "md5").hexdigest() != name:
                yield path
