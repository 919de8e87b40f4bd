"""A vocabulary that grows: ids that the model below base/ learned stay, new ones follow.

Without such a model it is the ids that sessionize gives, by first appearance. Reads the tables of
`hpgr/data/base_folder.py`, writes nothing.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.base_folder import BASE, VOCABULARY, is_filled
from hpgr.data.log import FIRST_ITEM
from hpgr.runtime import UserError

FIRST_ID = {"items": FIRST_ITEM, "actions": 1, "categories": 1}


def grown(table: str, names: pa.ChunkedArray) -> pa.ChunkedArray:
    """All names in the order of their ids: those of base/ first, then those of `names` it lacks.

    Args:
        table: a key of `VOCABULARY`.
        names: what the log holds, in order of first appearance.

    Raises:
        UserError: the table below base/ is missing or its ids are not as sessionize gives them.
    """
    old = _base_names(table)
    if not len(old):
        return names
    new = names.filter(pc.invert(pc.is_in(names, value_set=old)))
    return pa.chunked_array([*old.chunks, *new.chunks], pa.string())


def _base_names(table: str) -> pa.ChunkedArray:
    """Names of the base's table by id; empty where training starts from nothing."""
    if not is_filled():
        return pa.chunked_array([], pa.string())
    path = BASE / f"{table}.parquet"
    (key, name), first_id = VOCABULARY[table], FIRST_ID[table]
    try:
        rows = pq.read_table(path, columns=[key, name]).sort_by(key)
    except (FileNotFoundError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}. {CURE}") from error
    if rows[key].to_pylist() != list(range(first_id, first_id + len(rows))):
        raise UserError(
            f"{path}: expected ids from {first_id} without gaps in column {key!r}. {CURE}"
        )
    names = rows[name].cast(pa.string())
    if names.null_count or len(pc.unique(names)) != len(names):
        raise UserError(f"{path}: expected each id to have one name of its own. {CURE}")
    return names


CURE = f"Fill {BASE}/ again from the registry, or empty it to train from nothing."
