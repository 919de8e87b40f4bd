"""A trained network's weights, checked before anything of their size is built or read.

Reads `config.json` (`hpgr.model.stored_config`) and the header of `model.safetensors` in a folder.
Weights are compared with the network on torch's meta device, which holds no numbers, so that a
claim costs no memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpgr.model.catalogue import Catalogue
from hpgr.model.interface import build
from hpgr.model.stored_config import CONFIG, read_config, settings_of
from hpgr.runtime import DamagedFile

WEIGHTS = "model.safetensors"
OFFSETS, CATEGORY = "trunk.items.category_offsets", "trunk.items.category"


def check_network(folder: Path) -> dict[str, Any]:
    """Return config.json of a trained network after checking that the weights beside it fit.

    Raises:
        FileNotFoundError: one of the two files is missing.
        DamagedFile: a value or a weight is wrong; the message names it.
    """
    config = read_config(folder / CONFIG)
    outline = _outline(folder / WEIGHTS)
    try:
        with torch.device("meta"), _Unfilled():
            settings, catalogue = settings_of(config), catalogue_of(config, outline)
            network = build(settings, catalogue, ranking=config["ranking"])
        network.load_state_dict(outline)
    except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise DamagedFile(folder / WEIGHTS, error) from error
    return config


class _Unfilled(TorchFunctionMode):
    """Leave initial values out: shapes need none, and on `meta` they load torch's compiler."""

    FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.eye)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS or getattr(func, "__module__", None) == nn.init.__name__:
            (target,) = [*args[:1], *(kwargs[k] for k in ("tensor", "out") if k in kwargs)][-1:]
            return target
        return func(*args, **kwargs)


def check_weights(path: Path, weights: dict[str, Tensor], num_categories: int) -> None:
    """Refuse weights that are not finite, and categories that the catalogue does not have.

    Raises:
        DamagedFile: the message names the weight.
    """
    for name, weight in weights.items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise DamagedFile(path, f"{name} holds values that are not finite")
    if OFFSETS not in weights or CATEGORY not in weights:
        return
    offsets, category = weights[OFFSETS], weights[CATEGORY]
    ascending = bool((offsets[1:] >= offsets[:-1]).all())
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(category) or not ascending:
        raise DamagedFile(path, f"{OFFSETS} does not ascend from 0 to {len(category)}")
    if len(category) and not 0 <= int(category.min()) <= int(category.max()) < num_categories:
        raise DamagedFile(path, f"{CATEGORY} holds ids beyond 0 to {num_categories - 1}")


def catalogue_of(config: dict[str, Any], weights: dict[str, Tensor]) -> Catalogue:
    """Return the catalogue: sizes from `config`, categories from `weights` if they hold any."""
    sizes = config["catalogue"]
    none = torch.zeros(sizes["num_items"] + 1 if OFFSETS not in weights else 0, dtype=torch.int64)
    return Catalogue(
        **sizes,
        category_offsets=weights.get(OFFSETS, none),
        category=weights.get(CATEGORY, torch.zeros(0, dtype=torch.int64)),
    )


def _outline(path: Path) -> dict[str, Tensor]:
    """Every weight by name, as shape and type without numbers; the library checks the sizes."""
    outline = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                whole = part.get_dtype() == "I64"
                if whole != (name in (OFFSETS, CATEGORY)) or not part.get_dtype().startswith(
                    ("F", "BF", "I64")
                ):
                    raise DamagedFile(path, f"{name} is of type {part.get_dtype()}")
                kind = torch.int64 if whole else torch.float32
                outline[name] = torch.empty(part.get_shape(), dtype=kind, device="meta")
    except (SafetensorError, OSError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedFile(path, error) from error
    return outline
