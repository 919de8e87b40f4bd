"""The model that training starts from: the folder base/, empty for a training from nothing.

    base/base.json          name, version, run_id and key of the registered model
    base/model/             model.safetensors and config.json, as the finetune stage wrote them
    base/{items,actions,categories}.parquet   its vocabulary: ids that must not move
    base/trained.npy        what it has trained on (`hpgr.data.memory`)

`hpgr.registry.base` fills it from the registry and empties it; sessionize, pretrain and finetune
depend on it, so that DVC sees what a warm start began with. Reads the folder, writes nothing.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from hpgr.runtime import UserError

BASE = Path("base")
MODEL = BASE / "model"
VOCABULARY = {
    "items": ("item", "item_id"),
    "actions": ("action", "name"),
    "categories": ("category", "name"),
}  # table: inside id, outside name


def is_filled() -> bool:
    """Whether there is a model to start from; base.json is written last."""
    return (BASE / "base.json").is_file()


def check_kept_ids(sessions: Path) -> None:
    """Refuse a sessionized log in which an id of the base means something else, or nothing.

    Args:
        sessions: the folder of the sessionize stage.

    Raises:
        UserError: the message names the first id that differs.
    """
    for table, columns in VOCABULARY.items():
        path = sessions / f"{table}.parquet"
        old, new = _names(BASE / path.name, columns), _names(path, columns)
        moved = [number for number, name in old.items() if new.get(number) != name]
        if moved:
            number = moved[0]
            raise UserError(
                f"{path}: {columns[0]} {number} is {new.get(number)!r}, expected {old[number]!r} "
                f"as in {BASE} ({len(moved)} of {len(old)} differ): weights would change their "
                "owners. Run `dvc repro sessionize` with the base in place, or train from nothing "
                "after `hpgr base --clear`."
            )


def _names(source: Path, columns: tuple[str, str]) -> dict[int, str]:
    table = pq.read_table(source, columns=list(columns))
    return dict(zip(*(table[name].to_pylist() for name in columns), strict=True))
