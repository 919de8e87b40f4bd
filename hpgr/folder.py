"""Whether the project's folder is one that its tools can work in.

Databases are named by URLs, servers by a file of settings, programs by a line of shell, and DuckDB
takes `key=value` for a column: some signs of a folder's name mean something to one of those. MLflow
and Prefect would then write outside the folder, or a command would not be found. Reads the current
folder; writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from hpgr.runtime import UserError

SIGNS = '?%#=$"`\\:;{}[]*|<>'  # as in the Makefile


def require_folder(path: Path | None = None) -> None:
    """Refuse a path with signs that a tool would read as its own.

    Args:
        path: the folder; None is the current one.

    Raises:
        UserError: the message names the signs.
    """
    text = str((path or Path.cwd()).absolute())
    signs = sorted({sign for sign in text if sign in SIGNS or not sign.isprintable()})
    if signs:
        raise UserError(
            f"the folder {text!r} has {' '.join(map(repr, signs))} in its path, which the tools of "
            "the project read as signs of their own: rename or move it. Letters, digits, spaces "
            "and . , _ - + @ ~ ( ) & ' ! are fine"
        )


def require_repository() -> None:
    """Refuse a folder that belongs to no git repository, as a copy from a zip does not.

    Raises:
        UserError: the message says how to make one.
    """
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        raise UserError(
            f"{here} is no git repository, and DVC and a version's lineage need one. Clone the "
            "project, or in a copy run: git init && git add -A && git commit -m 'Copy of hpgr'"
        )
