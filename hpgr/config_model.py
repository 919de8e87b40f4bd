"""The section `model`: that of the network it names, made from the section's dataclass.

Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, Field, create_model

from hpgr.model.zoo import ZOO, section_class

Whole = TypeVar("Whole", bound=BaseModel)


def with_model(whole: type[Whole], values: Any) -> type[Whole]:
    """Return the configuration `whole` with the section `model` of the network that it names.

    Args:
        whole: has a field `model` of a base class for its section.
        values: the section as read, of any type; where it names no network of the zoo, only the
            name is checked, as the other keys cannot be judged.
    """
    name = values.get("name") if isinstance(values, dict) else None
    section: Any = section_class(name) if isinstance(name, str) and name in ZOO else None
    return _with_model(whole, section, tuple(ZOO))


@lru_cache(maxsize=16)  # equal configurations are of one class
def _with_model(whole: Any, section: Any, names: tuple[str, ...]) -> Any:
    base = whole.model_fields["model"].annotation
    options: dict[str, Any] = {}
    if section is None:
        base = type(base.__name__, (base,), {"model_config": {"extra": "ignore"}})
    else:
        hints = get_type_hints(section)
        options = {f.name: (hints[f.name], Field(**f.metadata)) for f in fields(section)}
    options["name"] = (Literal[names], ...)
    return create_model(
        whole.__name__,
        __base__=whole,
        model=(create_model(base.__name__, __base__=base, **options), ...),
    )
