"""Profiles: values of params.yaml under a name, one file each below profiles/.

profiles/quick.yaml holds every parameter that any profile changes; each other file holds what it
changes against that. Applying a profile writes quick's values and then its own into params.yaml
(comments and order kept), where DVC and every stage read them. So the file always shows the values
behind the artifacts beside it, and `git diff params.yaml` shows what was changed. Reads profiles/;
writes the params.yaml that it is given.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hpgr.config import Config, resolve
from hpgr.params_file import FORMER, PARAMS_FILE, ConfigError, meant, parse_params, read_params
from hpgr.runtime import write_text

PROFILES = Path("profiles")
COMMON = "quick"
ABSENT = object()


class ChangedValue(NamedTuple):
    """A parameter whose value differs from what the file held; ABSENT where one is missing."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.after is ABSENT:
            return f"{self.key}: removed"
        before = "not set" if self.before is ABSENT else _shown(self.before)
        return f"{self.key}: {before} -> {_shown(self.after)}"


def set_params(
    values: Mapping[str, Any] | None = None,
    profile: str | None = None,
    path: Path = PARAMS_FILE,
    profiles: Path = PROFILES,
) -> list[ChangedValue]:
    """Write the values of a profile, then single ones, into a params.yaml; return what changed.

    Args:
        values: `section.key` to value; they win over the profile's.
        profile: name of a file in `profiles`; None leaves all that `values` does not name.
        path: the params.yaml. Nothing is written unless the result is a valid configuration.
        profiles: folder of the profiles.

    Raises:
        ConfigError: there is no such profile or parameter, or a value is not allowed.
    """
    changes, text, _ = _changed(values or {}, profile, path, profiles)
    if changes:
        write_text(path, text)
    return changes


def with_params(
    values: Mapping[str, Any] | None = None,
    profile: str | None = None,
    path: Path = PARAMS_FILE,
    profiles: Path = PROFILES,
) -> Config:
    """Return the configuration that `set_params` would leave, without writing it.

    Raises:
        ConfigError: as `set_params`.
    """
    return _changed(values or {}, profile, path, profiles)[2]


def for_request(
    *,
    k: int | None = None,
    at: str | int | None = None,
    seen: str | None = None,
    allow: Path | None = None,
    deny: Path | None = None,
) -> Config:
    """Return the configuration of the current folder with a request's own section `recommend`.

    None leaves the file's value. `allow` and `deny` may name any file: a caller that gets them
    from others checks them.

    Raises:
        ConfigError: as `set_params`.
    """
    asked = {"k": k, "at": at, "seen": seen}
    cfg = with_params(
        {f"recommend.{key}": value for key, value in asked.items() if value is not None}
    )
    files = {key: path for key, path in (("allow", allow), ("deny", deny)) if path is not None}
    return cfg.model_copy(update={"recommend": cfg.recommend.model_copy(update=files)})


def read_overrides(entries: list[str] | None) -> dict[str, Any]:
    """Turn `section.key=value` entries of a command line into values, each read as YAML.

    Raises:
        ConfigError: an entry has no `=`, or its value is not YAML.
    """
    found = {}
    for entry in entries or ():
        dotted, separator, text = entry.partition("=")
        if not separator or not dotted:
            raise ConfigError(f"--set {entry!r}: expected SECTION.KEY=VALUE")
        parse_params(f"{dotted}: {text}", f"--set {entry!r}")
        try:
            found[dotted] = YAML(typ="safe").load(text)
        except YAMLError as error:
            raise ConfigError(f"--set {entry!r}: the value is not valid YAML: {error}") from error
    return found


def _changed(
    values: Mapping[str, Any], profile: str | None, path: Path, profiles: Path
) -> tuple[list[ChangedValue], str, Config]:
    """Return what changes, the new text of the file and its configuration."""
    read_params(path)  # its messages are clearer than those of ruamel.yaml
    document = _load(path)
    before = dict(_flat(document))
    origins: dict[str, str] = {}
    parts = []
    if profile is not None:
        sections, origins = _read_profile(profile, profiles)
        parts.append(f"profile {profile}")
        _apply(document, sections)
    if values:
        _set(document, values, path)
        origins |= dict.fromkeys(values, "overrides")
        parts.append("overrides")
    source = str(path) + " with " * bool(parts) + " and ".join(parts)
    stream = io.StringIO()
    _yaml().dump(document, stream)
    text = stream.getvalue()
    cfg = resolve(parse_params(text, source), source=source, origins=origins)
    after = dict(_flat(document))
    changes = [
        ChangedValue(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in {**before, **after}
        if key not in before or key not in after or not _same(before[key], after[key])
    ]
    return changes, text, cfg


def _read_profile(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the sections of a profile on top of the common ones, and the file of each key."""
    known = sorted(path.stem for path in folder.glob("[!.]*.yaml"))
    file = folder / f"{name}.yaml"
    if not re.fullmatch(r"\w[\w.-]*", name) or not file.is_file():
        if not known:
            raise ConfigError(
                f"no profile in {folder}/: run hpgr in the project's root folder, which has it"
            )
        raise ConfigError(
            f"profile is {name!r}, expected the name of a file in {folder}/: {', '.join(known)}"
            + meant(name, known)
        )
    common_file = folder / f"{COMMON}.yaml"
    common, origins = _read_sections(common_file)
    if name == COMMON:
        return common, origins
    own, own_origins = _read_sections(file)
    network = common.get("model", {}).get("name")
    if own.get("model", {}).get("name", network) != network:
        common["model"] = own.pop("model")  # another network has other parameters: all are here
        origins["model"] = str(file)
    for section, keys in own.items():
        for key, value in keys.items():
            if key not in common.get(section, {}):
                dotted = f"{section}.{key}"
                raise ConfigError(
                    f"{file}: {dotted} is not in {common_file}{meant(dotted, origins)}. "
                    "List it there too, with the value that it has without this profile"
                )
            common[section][key] = value
    return common, {**origins, **own_origins}


def _read_sections(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the sections of one file, and the file's name by `section.key`."""
    if not file.is_file():
        raise ConfigError(f"{file} not found: it holds the values that other profiles change")
    for section, keys in read_params(file).items():
        if not isinstance(keys, dict):
            raise ConfigError(
                f"{file}: {section} is {_shown(keys)}, expected a section with its keys"
            )
    sections = _load(file)
    return sections, {f"{s}.{key}": str(file) for s, keys in sections.items() for key in keys}


def _apply(document: Any, sections: dict[str, Any]) -> None:
    """Put a profile's values into the document; a section of another network replaces the old."""
    for key in FORMER:
        document.pop(key, None)
    for section, keys in sections.items():
        target = document.get(section)
        if not isinstance(target, dict):
            document[section] = keys  # validation reports what is wrong with it
        elif section == "model" and target.get("name") != keys.get("name"):
            document[section] = keys
        else:
            for key, value in keys.items():
                _put(target, key, value)


def _set(document: Any, values: Mapping[str, Any], path: Path) -> None:
    known = [key for key, _ in _flat(document)]
    for dotted, value in values.items():
        target, key = document, dotted
        while isinstance(target, dict) and key not in target:
            section, _, key = key.partition(".")
            target = target.get(section)
        if not isinstance(target, dict):
            raise ConfigError(
                f"{path}: no parameter {dotted!r}{meant(dotted, known)}; `hpgr params` prints them "
                "all"
            )
        _put(target, key, value)


def _put(target: dict[str, Any], key: str, value: Any) -> None:
    """Set a value; an equal one keeps its spelling."""
    if key not in target or not _same(target[key], value):
        target[key] = value


def _same(one: Any, other: Any) -> bool:
    """Return True if both are one value: True is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _flat(section: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value and key not in FORMER:
            yield from _flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _load(path: Path) -> Any:
    return _yaml().load(path.read_text(encoding="utf-8-sig"))


def _yaml() -> YAML:
    yaml = YAML()  # round trip: comments and order survive
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), _null)
    return yaml


def _null(representer: Any, _: None) -> Any:
    """Write None as `null`; by default it would be empty."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
