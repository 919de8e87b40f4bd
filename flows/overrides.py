"""Parameters of a deployment, written into params.yaml: the one place of a tunable value.

Overrides stay there, as with `dvc exp run --set-param`: the file always says what the artifacts
beside it were made with, and `git diff params.yaml` what was changed. Reads and writes params.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.runtime import deployment
from ruamel.yaml import YAML

from hpgr.config import PARAMS_FILE, Config, ConfigError, resolve
from hpgr.params_file import read_params
from hpgr.paths import inside_project
from hpgr.runtime import UserError, atomic_path


def set_params(values: dict[str, Any], path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Set `section.key` entries in params.yaml, comments kept; returns those that changed.

    A key that the profile in force sets is set there, where it counts. Nothing is written unless
    the result is a valid configuration.

    Raises:
        ConfigError: a key is no parameter, or the value is not allowed.
    """
    yaml, document = _read(path)
    changed = _set(document, values, path)
    resolve(document, source=f"{path} with overrides")
    if changed:
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
    return changed


def with_params(values: dict[str, Any], path: Path = PARAMS_FILE) -> Config:
    """The configuration with `section.key` entries set for the moment; params.yaml stays.

    Raises:
        ConfigError: as `set_params`.
    """
    _, document = _read(path)
    _set(document, values, path)
    return resolve(document, source=f"{path} with overrides")


def given_path(name: str, text: str) -> Path:
    """The path that a run was given as its parameter `name`.

    Raises:
        UserError: it lies outside the project and came through a deployment: whoever reaches
            Prefect's API may start one. A person's own command may name any file.
    """
    if deployment.id is not None:
        try:
            inside_project(Path(text))
        except ValueError as error:
            raise UserError(
                f"{name}: {error} (found {text!r}). Only a command on the machine itself, "
                "`python -m flows.NAME`, may name other places"
            ) from error
    return Path(text)


def _read(path: Path) -> tuple[YAML, Any]:
    read_params(path)  # tells what ruamel.yaml would tell in its own way
    yaml = YAML()  # round trip: comments and order survive
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), _null)
    return yaml, yaml.load(path.read_text(encoding="utf-8"))


def _set(document: Any, values: dict[str, Any], path: Path) -> dict[str, Any]:
    changed = {}
    for dotted, value in sorted(values.items(), key=lambda entry: entry[0] != "profile"):
        target, key = _place(document, dotted)
        if not isinstance(target, dict) or key not in target:
            raise ConfigError(f"{path}: no parameter {dotted!r}; `hpgr params` prints them all")
        if target[key] != value:
            target[key] = changed[dotted] = value
    return changed


def _place(document: dict[str, Any], dotted: str) -> tuple[Any, str]:
    """The mapping that holds the value in force of `dotted`, and its key there."""
    profile = document["profiles"].get(document["profile"]) or {}
    if dotted in profile:
        return profile, dotted
    *sections, key = dotted.split(".")
    target: Any = document
    for section in sections:
        target = target.get(section) if isinstance(target, dict) else None
    return target, key


def _null(representer: Any, _: None) -> Any:
    """None as `null`; by default it is written as nothing at all."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
