"""Paths that others may set: in params.yaml, an override, a deployment's parameters.

They lie inside the project's folder: whoever may start a run cannot read other files of the
machine, and a version's parameters mean the same in every clone. A path that a person types
at a command on their own machine goes unchecked. Follows symbolic links; writes nothing.
"""

from __future__ import annotations

from pathlib import Path


def inside_project(path: Path) -> Path:
    """Return `path` if it names something below the current folder, links followed.

    Raises:
        ValueError: it is absolute, leads out of the folder, or goes through a hidden name (.git,
            .env); the message says what was expected.
    """
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("expected a path inside the project's folder, relative and without `..`")
    if not path.parts:
        raise ValueError("expected a path below the project's folder, found none")
    if hidden := [part for part in path.parts if part.startswith(".")]:
        raise ValueError(f"{hidden[0]!r} is hidden: expected a path without hidden names")
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ValueError(f"it cannot be followed ({error})") from error
    if not target.is_relative_to(Path.cwd().resolve()):
        raise ValueError(
            "it is, or goes through, a symbolic link that leads out of the project's folder: put "
            "the files themselves there"
        )
    return path


def inside_folder(name: str) -> str:
    """Return `name` if it names a file inside another folder, such as that of data.path.

    Raises:
        ValueError: as `inside_project`, or it is empty.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("expected the name of a file inside data.path, without `..`")
    if any(part.startswith(".") for part in path.parts):
        raise ValueError("it is hidden: expected a name without a leading dot")
    return name
