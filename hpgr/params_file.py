"""Read params.yaml: YAML in which a key may stand once, and suggestions for misspelt names.

Words and numbers are read as DVC and YAML 1.2 read them: only true and false are switches, and
numbers that YAML 1.1 would take for octal or base 60 are refused. Reads the file it is given;
writes nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hpgr.masking import masked

PARAMS_FILE = Path("params.yaml")
FORMER = ("profile", "profiles")  # keys of earlier versions of the file; see hpgr.profiles


class ConfigError(ValueError):
    """params.yaml or an override is wrong; the message names the key and what was expected."""

    def __init__(self, message: object) -> None:
        super().__init__(masked(message))


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return the sections of `path`, unchecked.

    Raises:
        ConfigError: the file is missing, is not YAML, or sets a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} not found: run hpgr in the project's root folder") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder, expected the file of parameters") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    return parse_params(text, str(path))


def parse_params(text: str, source: str) -> dict[str, Any]:
    """Return the sections that a text holds.

    Args:
        text: that of a params.yaml or a profile.
        source: where it comes from, for the message.

    Raises:
        ConfigError: it is not YAML, or sets a key twice.
    """
    try:
        raw = yaml.load(text, _Params)  # a SafeLoader
    except RecursionError:
        raise ConfigError(
            f"{source}: brackets are nested too deep to be parameters; look for an unclosed [ or {{"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        found = {type(None): "nothing", list: "a list"}.get(type(raw), repr(raw))
        raise ConfigError(f"{source}: expected sections, found {found}")
    return raw


class Switch(str):
    """An unquoted yes, no, on, off: YAML 1.1 reads a switch, YAML 1.2 a word."""

    __slots__ = ()


AMBIGUOUS = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _Params(yaml.SafeLoader):
    """Loader that refuses equal keys, of which YAML keeps the last, and ambiguous numbers."""

    def construct_switch(self, node: yaml.ScalarNode) -> bool | Switch:
        text = self.construct_scalar(node)
        return text.lower() == "true" if text.lower() in ("true", "false") else Switch(text)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        if AMBIGUOUS.fullmatch(text):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{text} in line {node.start_mark.line + 1} is read as octal or base 60 by some "
                "programs and as decimal by others: write a plain number, or quote it as text",
            )
        kind = node.tag.rpartition(":")[2]
        read = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
        return read(node)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, line) != line:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key.value!r} is set twice, in line {seen[key.value]} and in line {line}: "
                    "remove one",
                )
        return node


_Params.add_constructor("tag:yaml.org,2002:bool", _Params.construct_switch)
_Params.add_constructor("tag:yaml.org,2002:int", _Params.construct_number)
_Params.add_constructor("tag:yaml.org,2002:float", _Params.construct_number)


def meant(found: Any, names: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the nearest of `names`; empty if none is near."""
    near = difflib.get_close_matches(str(found), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
