"""Write the difference between a working tree and its commit as one git patch, and apply it.

The patch is handled as bytes, so that line ends, encodings and binary files are restored exactly.
Only git's plumbing commands compare: a user's settings (colours, prefixes, another diff program) do
not affect them. Reads and patches the files below the folder it is given; git's index is unchanged.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hpgr.registry.held_back import as_text, by_content, by_name
from hpgr.runtime import UserError
from hpgr.workspace import HERE

NEW_FILES = 10 << 20  # bytes of new files in a patch: enough for code, not for logs or models
APPLY = ("apply", "--whitespace=nowarn")  # else apply.whitespace may change the patch


class Changes(NamedTuple):
    """Difference from the commit; `patch` is empty if nothing differs or there is no commit."""

    patch: bytes
    new: list[str]  # new files in the patch
    left_out: list[str]  # new files that are too large for it
    held_back: dict[str, str]  # files with a secret, which are not in the patch, and the reason


def changes(*, without: Iterable[str], root: Path = HERE.root) -> Changes:
    """Compare the files below `root` with HEAD, except for those that git ignores.

    New files are included, the smallest first, up to NEW_FILES in total. The others are left out,
    as are repositories inside this one. Files that hold a secret, new or changed, are held back
    (`hpgr.registry.held_back`). `without` names files that are kept in another way.

    Raises:
        UserError: git cannot read one of the files.
    """
    if head(root) is None:
        return Changes(b"", [], [], {})
    apart = list(without)
    with tempfile.TemporaryDirectory() as scratch:
        git = partial(_checked, root)
        own = {"GIT_INDEX_FILE": str(Path(scratch) / "index"), "GIT_LITERAL_PATHSPECS": "0"}
        git("read-tree", "HEAD", env=own)
        known = _names(git("ls-files", "-z", env=own))
        # From the real index: a file that was added by force counts even if git ignores it.
        there = _names(git("ls-files", "-z", "--cached", "--others", "--exclude-standard"))
        candidates = there - known - set(apart)
        secret = {name: why for name in candidates if (why := by_name(name))}
        new, left_out = _within(root, NEW_FILES, candidates - secret.keys())
        if new:
            names = b"\0".join(os.fsencode(name) for name in new)
            add = ("add", "--force", "--intent-to-add", "--pathspec-from-file=-")
            literally = own | {"GIT_LITERAL_PATHSPECS": "1"}
            git(*add, "--pathspec-file-nul", given=names, env=literally)
        # Else --raw lists files of the same content. The exit status only says that files differ.
        _git(root, "update-index", "-q", "--refresh", env=own)
        compare = ("diff-index", "--no-ext-diff", "--no-textconv", "--no-renames")
        selected = ("HEAD", "--", ".", *(f":!{name}" for name in apart))
        patch = git(*compare, "--binary", *selected, env=own)
        raw = git(*compare, "--raw", "-z", "--abbrev=64", "--relative", *selected, env=own)
    kept, held = _without_secrets(root, patch, raw)
    secret |= held
    new = [name for name in new if name not in secret]
    shown = {_readable([name])[0]: why for name, why in sorted(secret.items())}
    return Changes(kept, _readable(new), _readable(left_out), shown)


def _without_secrets(root: Path, patch: bytes, raw: bytes) -> tuple[bytes, dict[str, str]]:
    """Remove files that hold a secret from the patch; return the rest and the reasons.

    `raw` lists the same files in the same order (`diff-index --raw -z`).
    """
    pieces = re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE)[1:]
    fields = iter(raw.split(b"\0")[:-1])
    kept, held, at = [], {}, 0
    for entry in fields:
        name, (_, _, before, _, status) = os.fsdecode(next(fields)), entry.split()
        count = 2 if status == b"T" else 1  # a link in place of a file has two pieces
        own = pieces[at : at + count]
        at += count
        why = by_name(name) or by_content(name, _lines(root, name, os.fsdecode(before), own))
        if why:
            held[name] = why
        else:
            kept += own
    assert at == len(pieces), "git lists other files than it compares"
    return b"".join(kept), held


def _lines(
    root: Path, name: str, before: str, pieces: Iterable[bytes]
) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file's patch with their numbers in the new file, 0 if not in there.

    The patch of a binary file is compressed: both versions are read instead.
    """
    for piece in pieces:
        rest = piece.split(b"\n")
        if b"GIT binary patch" in rest:
            old, path = _git(root, "cat-file", "blob", before), root / name
            yield from ((0, line) for line in as_text(old.stdout).splitlines())
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            yield from enumerate(as_text(content).splitlines(), start=1)
            continue
        number = None  # no hunk yet
        for line in rest:
            if hunk := re.match(rb"@@ -\S+ \+(\d+)", line):
                number = int(hunk[1])
            elif number is not None and line[:1] in (b"+", b"-", b" "):
                is_new = line[:1] != b"-"
                yield number if is_new else 0, as_text(line[1:])
                number += is_new


def apply(patch: Path, root: Path = HERE.root) -> bool:
    """Apply `patch` to the files below `root`, whole or not at all.

    Returns:
        False if the files have all of it already.

    Raises:
        UserError: the files differ from those the patch was made for.
    """
    back = _git(root, *APPLY, "--check", "--reverse", str(patch.resolve()))
    if back.returncode == 0 and not back.stderr:  # git only warns of another file mode
        return False
    done = _git(root, *APPLY, str(patch.resolve()))
    if done.returncode != 0:
        raise UserError(
            "the patch of uncommitted changes does not fit this working tree: "
            f"{_errors(done)}. Nothing was changed; restore in a fresh clone"
        )
    return True


def head(root: Path = HERE.root) -> str | None:
    """Return the commit that is checked out; None outside git and before the first commit."""
    done = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None


def committed(path: Path, commit: str = "HEAD") -> bytes | None:
    """Return the content of `path` at `commit`; None if either is missing."""
    done = _git(path.parent, "cat-file", "blob", f"{commit}:./{path.name}")
    return done.stdout if done.returncode == 0 else None


def _within(root: Path, limit: int, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split the names into files that fit the limit and files that do not; skip missing files."""
    fit: list[str] = []
    rest: list[str] = []
    sizes = {n: os.lstat(root / n).st_size for n in names if os.path.lexists(root / n)}
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        if name.endswith("/"):  # another repository
            rest.append(name)
            continue
        limit -= sizes[name]
        (fit if limit >= 0 else rest).append(name)
    return fit, rest


def _readable(names: Iterable[str]) -> list[str]:
    """Sort the names and replace bytes that are not UTF-8."""
    return sorted(os.fsencode(name).decode(errors="replace") for name in names)


def _names(listed: bytes) -> set[str]:
    return {os.fsdecode(name) for name in listed.split(b"\0") if name}


def _checked(root: Path, *arguments: str, **options: Any) -> bytes:
    done = _git(root, *arguments, **options)
    if done.returncode != 0:
        raise UserError(f"git {arguments[0]} cannot read this working tree: {_errors(done)}")
    return done.stdout


def _git(
    root: Path,
    *arguments: str,
    given: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    command, env = ("git", *arguments), {**os.environ, **(env or {})}
    try:
        return subprocess.run(
            command, input=given, capture_output=True, check=False, env=env, cwd=root
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, b"", b"git is not installed")


def _errors(done: subprocess.CompletedProcess[bytes]) -> str:
    return "; ".join(done.stderr.decode(errors="replace").splitlines())
