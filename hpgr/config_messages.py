"""Messages about mistakes in params.yaml: one line each, with the values that are possible.

Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from hpgr.params_file import meant

COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")
# Type of a pydantic error, and what its limits are called in `ctx`, to what was expected.
EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} value(s)",
    "string_too_short": "at least {min_length} character(s)",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "string_pattern_mismatch": "text that matches {pattern}",
}
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list, such as [{found}]",
    "list": "a list, such as [{found}]",
    "dict": "names with values, one a line",
    "model": "names with values, one a line",
    "datetime": "a time, such as 2003-02-28T12:00",
    "date": "a time, such as 2003-02-28T12:00",
}


def fields_of(model: Any) -> dict[str, Any]:
    """Return the annotation of each field of a section, by its name in the file; else nothing."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    return {f.alias or name: f.annotation for name, f in model.model_fields.items()}


def described(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """Yield one line a mistake; a key that is missing because it is misspelt is named once.

    Args:
        error: what validating the file found.
        root: the model of the whole file.
    """
    explained: set[str] = set()
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    parents = {e["loc"][:-1] for e in errors}
    for e in errors:
        if e["type"] == "too_short" and e["loc"] in parents:
            continue  # of the values that are there, some are wrong and named
        place, found = ".".join(map(str, e["loc"])), e["input"]
        if e["type"] == "extra_forbidden":
            model: Any = root
            for part in e["loc"][:-1]:
                model = fields_of(model).get(str(part))
            hint = meant(e["loc"][-1], fields_of(model))
            if hint:
                explained.add(".".join([*map(str, e["loc"][:-1]), hint.split("'")[1]]))
            yield f"  {place}: unknown key{hint or '; remove it or correct its name'}"
        elif e["type"] == "missing":
            if place not in explained:
                yield f"  {place}: is missing; add it{_misspelt(e)}"
        elif e["type"] == "value_error":
            yield f"  {place}: {e['ctx']['error']} (found {found!r})"
        elif e["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", e["ctx"]["expected"])
            yield f"  {place}: found {found!r}, expected {e['ctx']['expected']}" + meant(
                found, choices
            )
        else:
            yield f"  {place}: found {_shown(found)}, expected {_expected(e, found)}"


def _misspelt(error: Any) -> str:
    """Return a hint where the missing key is there under a name close to its own."""
    section = ".".join(map(str, error["loc"][:-1]))
    close = get_close_matches(str(error["loc"][-1]), map(str, error["input"]), n=1)
    if not section or not close:
        return ""
    return f" ({section}.{close[0]}: unknown key; did you mean {error['loc'][-1]!r}?)"


def _expected(error: Any, found: Any) -> str:
    kind = error["type"]
    if kind in EXPECTED:
        return EXPECTED[kind].format(**error.get("ctx", {}))
    hint = ""
    if isinstance(found, str) and COMMA.fullmatch(found):
        hint = f", such as {found.strip().replace(',', '.')} (a point, no comma)"
    word = KINDS.get(kind.partition("_")[0])
    if word is None:
        return f"something else ({error['msg']})"
    return word.format(found=found) + hint


def _shown(found: Any) -> str:
    return "nothing" if found is None else repr(found)
