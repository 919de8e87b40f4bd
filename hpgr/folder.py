"""Names of the project's folder that its tools can work with, and addresses of databases in it.

    python -m hpgr.folder       for make, before there is an environment: the standard library alone

Databases are named by URLs and programs by a line of shell, where some characters of a folder's
name mean something else. What can be escaped is escaped; the rest is refused, as a command would
not be found, or something would be written outside the folder. Reads the current folder; writes
nothing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote

from hpgr.runtime import UserError

SIGNS = ":{}"  # `:` parts the folders of PATH; DVC formats a text that holds its cache's path
# pip's commands name their Python in their first line. With a space in it, or too long for the
# system, it becomes a line of shell: in double quotes if it has a space, else without quotes.
LONGEST = 124  # bytes
QUOTED_SIGNS = '$"`\\'
SHELL_SIGNS = QUOTED_SIGNS + "'&;|<>()[]*?"
_URL_SIGNS = str.maketrans({sign: f"%{ord(sign):02X}" for sign in '%?#"\\'})


def require_folder() -> None:
    """Refuse a current folder whose path has characters that a tool would misread.

    Raises:
        UserError: the path has such characters; the message lists them.
    """
    text = str(Path.cwd())
    python = os.fsencode(f"{text}/.venv/bin/python")
    refused, why = SIGNS, ""
    if " " in text:
        refused, why = refused + QUOTED_SIGNS, " (some of them because of the space beside them)"
    elif len(python) > LONGEST:
        refused, why = refused + SHELL_SIGNS, " (some of them because the path is that long)"
    signs = sorted({sign for sign in text if sign in refused or not sign.isprintable()})
    if signs:
        raise UserError(
            f"the folder {text!r} has {' '.join(map(repr, signs))} in its path, which the tools of "
            f"the project read as signs of their own{why}: rename or move it. Letters, digits, "
            "spaces and . , _ - + @ % ? # = are fine"
        )


def require_repository() -> None:
    """Refuse a folder outside any git repository, such as a copy from a zip.

    Raises:
        UserError: there is none; the message says how to make one.
    """
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        raise UserError(
            f"{here} is no git repository, and DVC and a version's lineage need one. Clone the "
            "project, or in a copy run: git init && git add -A && git commit -m 'Copy of hpgr'"
        )


def sqlite_uri(file: Path, driver: str | None = None) -> str:
    """Return SQLAlchemy's address of an SQLite file, absolute.

    Args:
        file: the database.
        driver: SQLAlchemy's name of it; None for MLflow, which makes a folder of what follows
            `sqlite:///`, escapes and all, and knows the other name of the same driver as well.
    """
    path = str(file.resolve())
    escaped = path.translate(_URL_SIGNS)
    if driver is None:
        driver = "sqlite" if escaped == path else "sqlite+pysqlite"
    return f"{driver}:///{escaped}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for any other."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(found[1])) if found else None


if __name__ == "__main__":
    try:
        require_folder()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
