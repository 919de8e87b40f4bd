"""config.json of a trained network: read, upgraded and checked.

A value of another type or out of range is one message. The limits of the section `model` are those
of its dataclass in the zoo. Needs no torch. Reads the given file.
"""

from __future__ import annotations

from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hpgr.data.log import FIRST_ITEM
from hpgr.model.sections import ModelSection
from hpgr.model.zoo import ZOO, section_class
from hpgr.runtime import DamagedFile, check_value, read_json

CONFIG = "config.json"
LARGEST_CONFIG = 1 << 20  # bytes
# By key: a type with the smallest and the largest value.
CATALOGUE: dict[str, tuple[Any, ...]] = {
    "num_items": (int, FIRST_ITEM + 1, 1 << 30),
    "num_actions": (int, 1, (1 << 15) - 1),  # int16 in histories
    "num_categories": (int, 0, 1 << 30),
    "gap_s": (int, 0, 1 << 40),
    "own_sessions": (bool,),
}
CALIBRATION: dict[str, tuple[Any, ...]] = {"slope": (float, -1e3, 1e3), "shift": (float, -1e3, 1e3)}
REPEATS: dict[str, tuple[Any, ...]] = {
    "weight": (float, 0, 1e3),
    "decay": (float, 0, 1),
    "weight_after_pause": (float, 0, 1e3),
    "decay_after_pause": (float, 0, 1),
}
NO_REPEATS = {"weight": 0.0, "decay": 1.0, "weight_after_pause": 0.0, "decay_after_pause": 1.0}
SUCCESSORS: dict[str, tuple[Any, ...]] = {
    "weight": (float, 0, 1e3),
    "weight_after_pause": (float, 0, 1e3),
    "decay": (float, 0, 1),
}
NO_SUCCESSORS = {"weight": 0.0, "weight_after_pause": 0.0, "decay": 1.0}
ADDED = {"own_sessions": False}  # keys that older networks lack, with their implied values


def read_config(path: Path) -> dict[str, Any]:
    """Read `path` and return it in today's form.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: a value is wrong; the message names it.
    """
    if path.stat().st_size > LARGEST_CONFIG:
        raise DamagedFile(path, f"larger than {LARGEST_CONFIG >> 20} MiB")
    config = read_json(path)
    if not isinstance(config, dict):
        raise DamagedFile(path, "expected an object")
    config = upgraded(config)
    check_value(path, "ranking", config.get("ranking"), (bool,))
    check_value(path, "candidates", config["candidates"], ("events", "impressions"))
    check_value(path, "lists", config["lists"], (bool,))
    model = config["model"] if isinstance(config.get("model"), dict) else {}
    check_value(path, "model.name", model.get("name"), tuple(ZOO))
    section = section_class(model["name"])
    _check_section(path, "model", model, _rules(section))
    _check_section(path, "catalogue", config.get("catalogue"), CATALOGUE)
    _check_section(path, "calibration", config["calibration"], CALIBRATION)
    _check_section(path, "repeats", config["repeats"], REPEATS)
    _check_section(path, "successors", config["successors"], SUCCESSORS)
    for field in fields(section):
        value = model[field.name]
        if value in (field.metadata.get("gt"), field.metadata.get("lt")):
            raise DamagedFile(path, f"model.{field.name} is {value}, which is the limit itself")
    if problems := list(settings_of(config).problems()):
        raise DamagedFile(path, f"model.{problems[0]}")
    return config


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json in today's form.

    Before, `encoder` named the network and the section `model` held the keys of all networks; pCTR
    was that of events and not calibrated, and nothing was added to the cosines.
    """
    config = {
        "candidates": "events",
        "lists": False,
        "calibration": {"slope": 1.0, "shift": 0.0},
        "repeats": dict(NO_REPEATS),
        "successors": dict(NO_SUCCESSORS),
        **config,
    }
    if isinstance(config.get("catalogue"), dict):
        config["catalogue"] = ADDED | config["catalogue"]
    if "encoder" in config:
        name, model = config.pop("encoder"), config.get("model", {})
        if isinstance(name, str) and name in ZOO and isinstance(model, dict):
            own = {field.name for field in fields(section_class(name))}
            model = {key: value for key, value in model.items() if key in own}
        config["model"] = {"name": name, **model} if isinstance(model, dict) else model
    return config


def settings_of(config: dict[str, Any]) -> ModelSection:
    """Return the section `model` of a checked config.json."""
    return section_class(config["model"]["name"])(**config["model"])


def _rules(section: type[ModelSection]) -> dict[str, tuple[Any, ...]]:
    """Rules as `check_value` reads them, by key of the section."""
    hints, rules = get_type_hints(section), {}
    for field in fields(section):
        kind, limits = hints[field.name], field.metadata
        low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
        rules[field.name] = get_args(kind) or (kind,)
        if kind in (int, float):
            rules[field.name] = (kind, -inf if low is None else low, inf if high is None else high)
    return rules | {"name": tuple(ZOO)}


def _check_section(path: Path, section: str, values: Any, rules: dict[str, Any]) -> None:
    if not isinstance(values, dict) or values.keys() != rules.keys():
        names = set(values) if isinstance(values, dict) else set()
        differing = ", ".join(sorted(map(str, names ^ rules.keys())))
        raise DamagedFile(
            path,
            f"{section} lacks or has beyond what is known: {differing}; a network of another "
            "version has to be trained again",
        )
    for name, rule in rules.items():
        check_value(path, f"{section}.{name}", values[name], rule)
