"""Paths that a run was given as parameters. Reads where symbolic links lead; writes nothing."""

from __future__ import annotations

from pathlib import Path

from prefect.runtime import deployment

from hpgr.paths import inside_project
from hpgr.runtime import UserError


def given_path(name: str, text: str) -> Path:
    """Return the path that a run was given as its parameter `name`.

    Raises:
        UserError: it lies outside the project and came through a deployment: whoever reaches
            Prefect's API may start one. A person's own command may name any file.
    """
    if deployment.id is not None:
        try:
            inside_project(Path(text))
        except ValueError as error:
            raise UserError(
                f"{name}: {error} (found {text!r}). Only a command on the machine itself, such as "
                "`hpgr refresh PATH`, may name other places"
            ) from error
    return Path(text)
