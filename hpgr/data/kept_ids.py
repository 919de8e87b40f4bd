"""Whether a sessionized log still calls everything by the ids of the base's vocabulary.

Apart from `hpgr.data.base_folder`, because this alone of what training does reads Parquet. Reads
base/ and the tables of the sessionize stage, writes nothing.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from hpgr.data.base_folder import BASE, VOCABULARY
from hpgr.runtime import UserError


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
