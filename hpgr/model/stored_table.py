"""The table of successors beside a network's weights, in the same file.

Its names begin with `successors.`. Reads and writes nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpgr.model.successors import Successors, SuccessorTable
from hpgr.runtime import DamagedFile

PREFIX = "successors."


def pack_table(table: SuccessorTable) -> dict[str, Tensor]:
    """Return a table as named tensors."""
    parts = {"offsets": table.offsets, "item": table.item, "share": table.share}
    return {PREFIX + name: torch.from_numpy(part) for name, part in parts.items()}


def take_successors(path: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> Successors:
    """Take the table out of `weights`, and its weights from config.json.

    Args:
        path: of the weights, for messages.
        weights: by name; those of the table are removed.
        config: checked.

    Raises:
        DamagedFile: the table is missing or incomplete, or holds what no count gives.
    """
    votes, catalogue = dict(config["successors"]), config["catalogue"]
    table = _table(path, weights, catalogue["num_items"], votes.pop("decay"))
    found = Successors(table, **votes, gap_s=catalogue["gap_s"])
    if table is None and any(votes.values()):
        raise DamagedFile(path, f"{PREFIX}* are missing, and config.json gives them a weight")
    return found


def _table(
    path: Path, weights: dict[str, Tensor], num_items: int, decay: float
) -> SuccessorTable | None:
    names = [name for name in weights if name.startswith(PREFIX)]
    if not names:
        return None
    found = {name.removeprefix(PREFIX): weights.pop(name) for name in names}
    kinds = {"offsets": torch.int64, "item": torch.int64, "share": torch.float32}
    if {name: part.dtype for name, part in found.items()} != kinds:
        raise DamagedFile(path, f"{PREFIX}* are {sorted(found)} or of other types, not {kinds}")
    offsets, item, share = found["offsets"], found["item"], found["share"]
    if any(part.dim() != 1 for part in found.values()) or len(offsets) != num_items + 1:
        raise DamagedFile(path, f"{PREFIX}offsets is not that of {num_items} items")
    ends = int(offsets[0]), int(offsets[-1])
    if ends != (0, len(item)) or len(item) != len(share) or bool((offsets.diff() < 0).any()):
        raise DamagedFile(path, f"{PREFIX}offsets does not ascend from 0 to {len(item)}")
    if len(item) and not 0 <= int(item.min()) <= int(item.max()) < num_items:
        raise DamagedFile(path, f"{PREFIX}item holds ids beyond 0 to {num_items - 1}")
    if not bool(((share >= 0) & (share <= 1)).all()):  # NaN is neither
        raise DamagedFile(path, f"{PREFIX}share holds values that are no shares")
    return SuccessorTable(offsets.numpy(), item.numpy(), share.numpy(), decay)
