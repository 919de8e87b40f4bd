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
from hpgr.model.stored_table import PREFIX
from hpgr.runtime import DamagedFile

WEIGHTS = "model.safetensors"
OFFSETS, CATEGORY = "items.category_offsets", "items.category"  # ends of two buffers' names


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
            network = build(settings, catalogue, ranking=config["ranking"], lists=config["lists"])
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
    offsets, category = _ending(weights, OFFSETS), _ending(weights, CATEGORY)
    if offsets is None or category is None:
        return
    ascending = bool((offsets[1:] >= offsets[:-1]).all())
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(category) or not ascending:
        raise DamagedFile(path, f"{OFFSETS} does not ascend from 0 to {len(category)}")
    if len(category) and not 0 <= int(category.min()) <= int(category.max()) < num_categories:
        raise DamagedFile(path, f"{CATEGORY} holds ids beyond 0 to {num_categories - 1}")


def catalogue_of(config: dict[str, Any], weights: dict[str, Tensor]) -> Catalogue:
    """Return the catalogue: sizes from `config`, categories from `weights` if they hold any."""
    sizes = config["catalogue"]
    offsets, category = _ending(weights, OFFSETS), _ending(weights, CATEGORY)
    if offsets is None:
        offsets = torch.zeros(sizes["num_items"] + 1, dtype=torch.int64)
    if category is None:
        category = torch.zeros(0, dtype=torch.int64)
    return Catalogue(**sizes, category_offsets=offsets, category=category)


def _ending(weights: dict[str, Tensor], end: str) -> Tensor | None:
    """Return the tensor whose name ends so, None where there is none."""
    return next((weight for name, weight in weights.items() if name.endswith(end)), None)


def _outline(path: Path) -> dict[str, Tensor]:
    """Every weight by name, as shape and type without numbers; the library checks the sizes."""
    outline = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name.startswith(PREFIX):
                    continue
                part = file.get_slice(name)
                whole = part.get_dtype() == "I64"
                if whole != name.endswith((OFFSETS, CATEGORY)) or not part.get_dtype().startswith(
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
