"""Check of a bundle before it is loaded: types, ranges, sizes, and agreement of its files.

A bundle comes from the registry, where anybody may have written. The sizes that it claims (rows,
items, blocks) are read from headers and footers and compared with the files first, so that a wrong
bundle costs neither memory nor time. Reads the bundle; `hpgr.registry.bundle` lists its files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.log import FIRST_ITEM
from hpgr.data.trained_events import SKETCH, read_sketch
from hpgr.registry.bundle import Serving
from hpgr.runtime import DamagedFile, UserError, check_value, read_json

LARGEST_JSON, LARGEST_TABLE, LONGEST_TEXT = 1 << 20, 1 << 30, 1 << 16  # bytes
NEEDED = ("serving.json", "items.parquet", "actions.parquet", "model")
SERVING: dict[str, tuple[Any, ...]] = {
    "gap_s": (int, 0, 1 << 40),
    "max_history": (int, 2, 1 << 24),
    "retrieve": (int, 1, 1 << 20),
    "remove_history": (bool,),
    "ranked": (bool,),
}


def check_bundle(bundle: Path) -> Serving:
    """Check all files of the bundle and return its settings for serving.

    Categories and the sketch may be missing: older versions have none and can still be served.

    Raises:
        UserError: a file is missing, damaged or holds an impossible value; the message names it.
    """
    from hpgr.model.stored import check_network  # late, as it imports torch

    for name in NEEDED:
        if not (bundle / name).exists():
            raise UserError(f"{bundle / name} not found, expected a model bundle")
    config = check_network(bundle / "model")
    serving = _serving(bundle / "serving.json", config)
    sizes = config["catalogue"]
    items = bundle / "items.parquet"
    found = _table(items, "item", "item_id", range(FIRST_ITEM, sizes["num_items"]), whole=True)
    _check_items(items, found)
    _table(bundle / "actions.parquet", "action", "name", range(1, sizes["num_actions"]), whole=True)
    if (bundle / "categories.parquet").exists():
        ids = range(1, sizes["num_categories"])
        _table(bundle / "categories.parquet", "category", "name", ids, whole=False)
    if (bundle / SKETCH).exists():
        read_sketch(bundle)
    return serving


def _serving(path: Path, config: dict[str, Any]) -> Serving:
    if path.stat().st_size > LARGEST_JSON:
        raise DamagedFile(path, f"larger than {LARGEST_JSON >> 20} MiB")
    values = read_json(path)
    try:
        serving = Serving(**values)
    except TypeError as error:  # other keys, or no object at all
        raise DamagedFile(path, error) from error
    for name, rule in SERVING.items():
        check_value(path, name, values[name], rule)
    for name, trained in (
        ("max_history", config["model"]["max_history"]),
        ("ranked", config["ranking"]),
        ("gap_s", config["catalogue"]["gap_s"]),
    ):
        if values[name] != trained:
            raise DamagedFile(path, f"{name} is {values[name]}, the model has {trained}")
    return serving


def _table(path: Path, key: str, name: str, ids: range, *, whole: bool) -> pa.Table:
    """Read a vocabulary table: unique names for unique `ids`, for all of them if `whole`.

    The footer gives the number of rows before any is read. Texts stay dictionary-encoded until
    their lengths are checked.
    """
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise DamagedFile(path, f"larger than {LARGEST_TABLE >> 30} GiB")
        rows, schema = pq.read_metadata(path).num_rows, pq.read_schema(path)
        if rows > len(ids) or (whole and rows != len(ids)):
            raise DamagedFile(path, f"{rows:,} rows, expected {len(ids):,} as the model has them")
        wanted = [key, name, *(["title", "train_events"] if key == "item" else [])]
        for column in wanted:
            numbers = column in (key, "train_events")
            _check_type(path, schema, column, numbers)
        texts = [column for column in wanted if column in (name, "title")]
        table = pq.read_table(path, columns=wanted, read_dictionary=texts)
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedFile(path, error) from error
    for text in texts:
        _check_lengths(path, table[text])
    if table[key].null_count or table[name].null_count:
        raise DamagedFile(path, f"{key} or {name} is missing in a row")
    if rows and not ids[0] <= pc.min(table[key]).as_py() <= pc.max(table[key]).as_py() <= ids[-1]:
        raise DamagedFile(path, f"{key} beyond {ids[0]} to {ids[-1]}")
    for column in (key, name):
        if pc.count_distinct(table[column].cast(schema.field(column).type)).as_py() != rows:
            raise DamagedFile(path, f"a value of {column} is in several rows")
    return table


def _check_type(path: Path, schema: pa.Schema, column: str, numbers: bool) -> None:
    if column not in schema.names:
        raise DamagedFile(path, f"no column {column}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (pa.types.is_integer(kind) if numbers else text):
        raise DamagedFile(path, f"{column} is of type {kind}")


def _check_lengths(path: Path, column: pa.ChunkedArray) -> None:
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if (pc.max(pc.binary_length(values)).as_py() or 0) > LONGEST_TEXT:
            raise DamagedFile(path, f"a text longer than {LONGEST_TEXT >> 10} KiB")


def _check_items(path: Path, items: pa.Table) -> None:
    events = items["train_events"]
    if events.null_count or (pc.min(events).as_py() or 0) < 0:
        raise DamagedFile(path, "train_events below 0, or missing in a row")
