"""The zoo: every model by name, one line each, resolved on first use.

A line names two classes as `module:Class`: the model's section of params.yaml (a dataclass as in
`hpgr.model.sections`) and its network (a subclass of `hpgr.model.interface.Network`). A model of
one's own has both in one file and needs one line more, here or before the configuration is read:

    ZOO["mine"] = Entry("my_model:MySection", "my_model:MyNetwork")

Imports neither torch nor pydantic: a configuration is read without them.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hpgr.model.sections import ModelSection


class Entry(NamedTuple):
    """Section and network of a model, each as `module:Class`."""

    section: str
    network: str


ZOO = {
    "hpgr": Entry("hpgr.model.sections:HPGRSection", "hpgr.model.hpgr:HPGR"),
    "hstu": Entry("hpgr.model.sections:HSTUSection", "hpgr.model.hstu:HSTU"),
    "mtgr": Entry("hpgr.model.sections:MTGRSection", "hpgr.model.mtgr:MTGR"),
}


def resolve_class(place: str) -> Any:
    """Import the class that `place`, `module:Class`, names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def section_class(name: str) -> type[ModelSection]:
    """Return the section of the model `name`, a dataclass."""
    return resolve_class(ZOO[name].section)


def section_of(values: Any) -> ModelSection:
    """Return the section `model` as its dataclass.

    Args:
        values: an object with the section's keys as attributes.
    """
    section = section_class(values.name)
    return section(**{field.name: getattr(values, field.name) for field in fields(section)})
