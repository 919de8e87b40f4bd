"""The model that training starts from: the folder base/, empty for a training from nothing.

    base/base.json          name, version, run_id and key of the registered model
    base/model/             model.safetensors and config.json, as the finetune stage wrote them
    base/{items,actions,categories}.parquet   its vocabulary: ids that must not move
    base/trained.npy        what it has trained on (`hpgr.data.trained_events`)

`hpgr.registry.fill_base` fills it from the registry and empties it; sessionize, pretrain and
finetune depend on it, so that DVC sees what a warm start began with. The folder itself is
`Workspace.base`.
"""

from __future__ import annotations

from pathlib import Path

RECORD = "base.json"
MODEL = "model"
VOCABULARY = {
    "items": ("item", "item_id"),
    "actions": ("action", "name"),
    "categories": ("category", "name"),
}  # table: columns of index and external id


def is_filled(base: Path) -> bool:
    """Return True if `base` holds a model to start from; base.json is written last."""
    return (base / RECORD).is_file()
