"""A trained network's files, checked before anything of their size is built or read.

Reads `config.json` and the header of `model.safetensors` in a folder. A value of another type, out
of range, or at odds with the shapes of the weights is one message; the weights themselves are
compared on torch's meta device, which holds no numbers, so that a claim costs no memory.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpgr.data.log import FIRST_ITEM
from hpgr.model.catalogue import Catalogue
from hpgr.model.hpgr import HPGR
from hpgr.model.hstu import HSTU
from hpgr.runtime import DamagedFile, check_value, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LARGEST_CONFIG = 1 << 20  # bytes
OFFSETS, CATEGORY = "trunk.items.category_offsets", "trunk.items.category"
# By key: a type with the smallest and the largest value, or the words that are allowed. Of what the
# shapes of the weights say as well (dim, blocks) these are the outermost limits.
MODEL: dict[str, tuple[Any, ...]] = {
    "dim": (int, 4, 1 << 16),
    "max_history": (int, 2, 1 << 24),
    "num_blocks": (int, 1, 1 << 10),
    "num_heads": (int, 1, 1 << 10),
    "dropout": (float, 0, 1),
    "position_bias": (bool,),
    "time_bias": (bool,),
    "side_features": (bool,),
    "sessions": (bool,),
    "intra_blocks": (int, 1, 1 << 10),
    "inter_blocks": (int, 1, 1 << 10),
    "preference": (bool,),
    "history_rows": ("causal", "preference"),
    "num_anchors": (int, 1, 32),  # the memory of a request grows as these two
    "sigma": (float, 1e-6, 32),
    "recent_window": (int, 1, 1 << 24),
    "tile": (int, 8, 512),
}
CATALOGUE: dict[str, tuple[Any, ...]] = {
    "num_items": (int, FIRST_ITEM + 1, 1 << 30),
    "num_actions": (int, 1, (1 << 15) - 1),  # int16 in histories
    "num_categories": (int, 0, 1 << 30),
    "gap_s": (int, 0, 1 << 40),
    "own_sessions": (bool,),
}
ADDED = {"own_sessions": False}  # what networks trained before lack, and what they mean by it
REPEATED = ("num_blocks", "intra_blocks", "inter_blocks")


def build(encoder: str, settings: Any, catalogue: Catalogue, *, ranking: bool) -> HPGR | HSTU:
    """The network named `encoder` (hpgr or hstu), with fresh weights."""
    if encoder == "hpgr":
        return HPGR(settings, catalogue)
    return HSTU(settings, catalogue, actions=ranking)


def check_network(folder: Path) -> dict[str, Any]:
    """What config.json of a trained network holds, found to fit the weights beside it.

    Raises:
        FileNotFoundError: one of the two files is missing.
        DamagedFile: a value or a weight is not what it has to be; the message names it.
    """
    config = _read_config(folder / CONFIG)
    outline = _outline(folder / WEIGHTS)
    for name in REPEATED:  # each block has weights of its own
        if config["model"][name] > len(outline):
            found = f"model.{name} is {config['model'][name]}"
            raise DamagedFile(folder / CONFIG, f"{found}, but there are {len(outline)} weights")
    try:
        with torch.device("meta"), _Unfilled():
            network = build(
                config["encoder"],
                SimpleNamespace(**config["model"]),
                catalogue_of(config, outline),
                ranking=config["ranking"],
            )
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
    """Refuse weights that are no numbers, and categories that the catalogue does not have.

    Raises:
        DamagedFile: the message names the weight.
    """
    for name, weight in weights.items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise DamagedFile(path, f"{name} holds values that are no finite numbers")
    if OFFSETS not in weights or CATEGORY not in weights:
        return
    offsets, category = weights[OFFSETS], weights[CATEGORY]
    ascending = bool((offsets[1:] >= offsets[:-1]).all())
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(category) or not ascending:
        raise DamagedFile(path, f"{OFFSETS} does not ascend from 0 to {len(category)}")
    if len(category) and not 0 <= int(category.min()) <= int(category.max()) < num_categories:
        raise DamagedFile(path, f"{CATEGORY} holds ids beyond 0 to {num_categories - 1}")


def catalogue_of(config: dict[str, Any], weights: dict[str, Tensor]) -> Catalogue:
    """Vocabulary sizes of `config` with the categories that travel among the weights, or none."""
    sizes = config["catalogue"]
    none = torch.zeros(sizes["num_items"] + 1 if OFFSETS not in weights else 0, dtype=torch.int64)
    return Catalogue(
        **sizes,
        category_offsets=weights.get(OFFSETS, none),
        category=weights.get(CATEGORY, torch.zeros(0, dtype=torch.int64)),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_CONFIG:
        raise DamagedFile(path, f"larger than {LARGEST_CONFIG >> 20} MiB")
    config = read_json(path)
    if not isinstance(config, dict):
        raise DamagedFile(path, "expected an object")
    check_value(path, "encoder", config.get("encoder"), ("hpgr", "hstu"))
    check_value(path, "ranking", config.get("ranking"), (bool,))
    for section, rules in (("model", MODEL), ("catalogue", CATALOGUE)):
        values = config.get(section)
        if section == "catalogue" and isinstance(values, dict):
            values = config[section] = ADDED | values
        if not isinstance(values, dict) or values.keys() != rules.keys():
            names = set(values) if isinstance(values, dict) else set()
            differing = ", ".join(sorted(map(str, names ^ rules.keys())))
            raise DamagedFile(path, f"{section} lacks or has beyond what is known: {differing}")
        for name, rule in rules.items():
            check_value(path, f"{section}.{name}", values[name], rule)
    return config


def _outline(path: Path) -> dict[str, Tensor]:
    """Every weight by name, as shape and type without numbers; the library checks the sizes."""
    outline = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
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
