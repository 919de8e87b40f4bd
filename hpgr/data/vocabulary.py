"""A vocabulary that grows: the model below base/ keeps its ids, new ones follow.

Without such a model the ids are those that sessionize gives, by first appearance. Reads the tables
of `hpgr.data.base_folder` and of the sessionize stage; writes nothing.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.base_folder import VOCABULARY, is_filled
from hpgr.data.id_map import read_indices
from hpgr.data.log import FIRST_ITEM
from hpgr.runtime import UserError
from hpgr.workspace import HERE, Workspace

FIRST_ID = {"items": FIRST_ITEM, "actions": 1, "categories": 1}


def grown(table: str, names: pa.ChunkedArray, base: Path) -> pa.ChunkedArray:
    """All names in the order of their ids: those of `base` first, then those of `names` it lacks.

    Args:
        table: a key of `VOCABULARY`.
        names: what the log holds, in order of first appearance.
        base: the folder of the model that training starts from.

    Raises:
        UserError: the table below `base` is missing or its ids are not as sessionize gives them.
    """
    old = _base_names(table, base)
    if not len(old):
        return names
    new = names.filter(pc.invert(pc.is_in(names, value_set=old)))
    return pa.chunked_array([*old.chunks, *new.chunks], pa.string())


def check_kept_ids(workspace: Workspace = HERE) -> None:
    """Refuse a sessionized log in which an id of the base means something else, or nothing.

    Raises:
        UserError: the message names the first id that differs.
    """
    for table, columns in VOCABULARY.items():
        old = read_indices(workspace.base, table)
        names = {number: name for name, number in read_indices(workspace.sessions, table).items()}
        moved = [name for name, number in old.items() if names.get(number) != name]
        if moved:
            number = old[moved[0]]
            raise UserError(
                f"{workspace.sessions / table}.parquet: {columns[0]} {number} is "
                f"{names.get(number)!r}, expected {moved[0]!r} "
                f"as in {workspace.base} ({len(moved)} of {len(old)} differ): weights would change "
                "their owners. Run `dvc repro sessionize` with the base in place, or train from "
                "nothing after `hpgr base --clear`."
            )


def _base_names(table: str, base: Path) -> pa.ChunkedArray:
    """Names of the base's table by id; empty where training starts from nothing."""
    if not is_filled(base):
        return pa.chunked_array([], pa.string())
    path = base / f"{table}.parquet"
    fix = f"Fill {base}/ again from the registry, or empty it to train from nothing."
    (key, name), first_id = VOCABULARY[table], FIRST_ID[table]
    try:
        rows = pq.read_table(path, columns=[key, name]).sort_by(key)
    except (FileNotFoundError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}. {fix}") from error
    if rows[key].to_pylist() != list(range(first_id, first_id + len(rows))):
        raise UserError(
            f"{path}: expected ids from {first_id} without gaps in column {key!r}. {fix}"
        )
    names = rows[name].cast(pa.string())
    if names.null_count or len(pc.unique(names)) != len(names):
        raise UserError(f"{path}: expected each id to have one name of its own. {fix}")
    return names
