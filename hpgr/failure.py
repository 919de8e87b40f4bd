"""Messages for low-level errors: a full disk, a damaged file, missing rights.

Libraries report each of them in their own words. Reads the files below artifacts/ and base/, only
after the error. Writes nothing, but removes compiled modules that a full disk may have cut off.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpgr.params_file import ConfigError
from hpgr.runtime import DamagedFile, UserError
from hpgr.workspace import HERE, Workspace

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SQLITE_FULL = "database or disk is full"
CODE = Path(__file__).parent
MEGABYTE = 1 << 20


@contextmanager
def explained(name: str, output: Path, workspace: Workspace = HERE) -> Iterator[None]:
    """Turn an error of the block into a UserError where its cause is known.

    Args:
        name: of the command or stage.
        output: the path that it writes; see `describe`.
        workspace: the files to look at.
    """
    try:
        yield
    except FileNotFoundError as error:
        missing = Path(str(error.filename))
        stages = (workspace.artifacts, workspace.validated)
        if not any(missing.is_relative_to(folder) for folder in stages):
            raise
        raise UserError(
            f"{missing} not found: run the stages before {name} first; `dvc repro` runs them all"
        ) from error
    except Exception as error:
        if message := describe(error, output, workspace):
            raise UserError(message) from error
        raise


def describe(error: Exception, output: Path, workspace: Workspace = HERE) -> str | None:
    """Return cause and fix of the error of a stage that writes to `output`; None if unknown.

    An error that has its own message keeps it.

    Args:
        error: the error.
        output: the path that the stage writes; it is not read.
        workspace: the files to look at.
    """
    if isinstance(error, UserError | ConfigError):
        return None
    if (full := next((e for e in chain(error) if is_full(e)), None)) is not None:
        _drop_compiled()
        return _no_room(full, output)
    if _reads_compiled(error):
        _drop_compiled()
        return (
            f"a compiled module below {CODE} was cut off ({error}), most likely by a full disk. "
            "The compiled ones are removed: run the same command again"
        )
    if damaged := [str(DamagedFile(path, why)) for path, why in _damaged(output, workspace)]:
        return "\n".join(damaged)
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}; give this user the right to read and write it, "
            "or look at the disk"
        )
    return None


def _reads_compiled(error: Exception) -> bool:
    """Return True if Python's loader failed on a compiled module, in any of marshal's words."""
    calls = traceback.extract_tb(error.__traceback__)
    return bool(calls) and calls[-1].name == "_compile_bytecode"


def _drop_compiled() -> None:
    """Remove the compiled modules of this package; Python compiles them again.

    On a full disk Python 3.11 and 3.12 may write half a module unnoticed (their loader ignores how
    many bytes were written); every later import of it would fail.
    """
    for folder in CODE.rglob("__pycache__"):
        shutil.rmtree(folder, ignore_errors=True)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and the errors that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_full(error: BaseException) -> bool:
    """Return True if a write found no room; some libraries only say so in the message."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return any(words in str(error) for words in (*map(os.strerror, FULL), SQLITE_FULL))


def _no_room(error: BaseException, output: Path) -> str:
    named = getattr(error, "filename", None)
    place = Path(named).parent if named else output.parent
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free / MEGABYTE
    return (
        f"no room left to write {named or output} (disk full, or a limit on files): {free:,.1f} MB "
        f"free in {place.absolute()}. Make room there (`dvc gc --workspace` drops old versions "
        "from DVC's cache) and run the same command again: what was finished is kept, and training "
        "goes on from its checkpoint"
    )


def _damaged(output: Path, workspace: Workspace) -> Iterator[tuple[Path, str]]:
    """Yield damaged files, with the message of their format's reader; `output` is left out."""
    folders = (workspace.artifacts, workspace.base)
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and output not in path.parents and not path.name.startswith("."):
            try:
                _open(path)
            except Exception as error:  # any error of a reader is the file's fault
                yield path, str(error).split("\n")[0]


def _open(path: Path) -> None:
    """Read enough of a file to notice that it was cut off."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                del batch
    elif path.suffix == ".npy":
        import numpy as np

        np.load(path, mmap_mode="r", allow_pickle=False)
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np"):
            pass
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
