"""One text for each value, whatever type or program it came from.

5, 5.0 and 5.00 are "5"; the 32-bit number 4.1 is "4.1", as short as its type allows. Takes and
returns Arrow and pandas columns; reads and writes no files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from hpgr.data.labels import ZEROS_AT_THE_END
from hpgr.intake.contract import MISSING_WORDS

NESTED = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)
# Up to these powers of two a float holds every whole number; beyond, the last digits are invented.
EXACT_BITS = {16: 11, 32: 24, 64: 53}
DIGITS_LOST = (
    "a float keeps 15 digits of a whole number (32 bits: 7), the rest are wrong; export the "
    "column from its source as whole numbers or text"
)
# How pandas writes whole numbers in a column with gaps, and a database those of a decimal type.
WHOLE = r"-?(?:0|[1-9][0-9]*)(?:\.0+)?"
# How a spreadsheet writes numbers of 12 digits or more, and pandas those beyond 1e16.
SCIENTIFIC = r"-?[0-9](?:\.[0-9]+)?[eE]\+?[0-9]+"
FROM_A_FLOAT = r"(?:\.0+|[0-9][eE]\+?[0-9]+)$"
SHORTENED_FROM = 10**11


def words(values: pa.Array | pa.ChunkedArray) -> pd.Series:
    """Text, with the words for "no value" as missing values."""
    trimmed = pc.utf8_trim_whitespace(values)
    missing = pc.is_in(trimmed, value_set=pa.array(MISSING_WORDS, trimmed.type))
    return pc.if_else(missing, None, values).to_pandas().astype("str")


def spell(column: pa.Array) -> pa.Array:
    """A column of text, numbers, truth values, bytes or times as text.

    Raises:
        pa.ArrowInvalid, pa.ArrowNotImplementedError: it is nested, or its bytes are not text.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind == pa.uuid():
            return pa.array(
                [None if v is None else str(v) for v in column.to_pylist()], pa.string()
            )
        return spell(column.storage)
    if pa.types.is_dictionary(kind):
        return spell(column.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return spell(pc.run_end_decode(column))
    if pa.types.is_floating(kind):
        return _float_text(column)
    if pa.types.is_decimal(kind):
        # Only Python writes every scale without an exponent.
        numbers = (None if v is None else f"{v:f}" for v in column.to_pylist())
        return plain(pa.array(numbers, pa.string()))
    return column.cast(pa.string())


def spell_time(column: pa.Array) -> pa.Array:
    """A column of times as whole epoch seconds UTC, fractions cut off; others as `spell`.

    Fractions of a second in a number stay: the rules judge them.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return spell_time(column.dictionary_decode())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        whole = pc.floor_temporal(column.cast(pa.timestamp("us"), safe=False), unit="second")
        return whole.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).cast(pa.string())
    return spell(column)


def spell_any(column: pa.Array) -> tuple[pa.Array, str | None]:
    """A column of any type as text, and the notation used if its values are not plain.

    Raises:
        ValueError: Arrow cannot convert the values.
    """
    try:
        return spell(column), None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        nested = pa.types.is_nested(column.type)
    cells = [_python(value, column.type) for value in column.to_pylist()]
    if nested:
        text = [None if cell is None else _json(cell) for cell in cells]
        return pa.array(text, pa.string()), "JSON"
    return pa.array([None if c is None else c.hex() for c in cells], pa.string()), "hex digits"


def lists_of(column: pa.Array) -> list[Any] | None:
    """The lists of a column of lists, floats as short as their type allows; None for others."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not any(is_kind(column.type) for is_kind in NESTED):
        return None
    return [_python(value, column.type) for value in column.to_pylist()]


def spell_value(value: object) -> str | None:
    """One value of a list as text; None if it means "no value"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2.0**53 else repr(value)
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, bytes):
        value = _bytes(value)
    if isinstance(value, Mapping):  # {'id': 16, 'name': 'Animation'}
        return spell_value(value["name"]) if "name" in value else _json(value)
    text = "" if value is None else str(value).strip()
    return None if text in MISSING_WORDS else text


def plain(numbers: pa.Array) -> pa.Array:
    """Decimal numbers without trailing zeros: 4.50 as 4.5, 5.0 as 5; other text unchanged."""
    return pc.replace_substring_regex(numbers, ZEROS_AT_THE_END, r"\1\2")


def plain_words(text: pd.Series) -> pd.Series:
    """`plain` for a pandas column of text."""
    if not text.str.contains(".", regex=False).any():
        return text
    return text.str.replace(ZEROS_AT_THE_END, r"\1\2", regex=True)


def whole_numbers(ids: pd.Series) -> pd.Series:
    """Ids without ".0" if all are whole numbers and some have it; otherwise unchanged.

    Raises:
        ValueError: all are numbers, and one lost digits in a float.
    """
    present = ids.dropna()
    spoiled = present[present.str.contains(FROM_A_FLOAT)]
    if not len(spoiled) or not present.str.fullmatch(f"{WHOLE}|{SCIENTIFIC}").all():
        return ids
    scientific = spoiled.str.contains("e", case=False, regex=False)
    limits = np.where(scientific, SHORTENED_FROM, 2 ** EXACT_BITS[64])
    if len(lost := spoiled[spoiled.astype("float64").abs() >= limits]):
        raise ValueError(lost.iloc[0])
    return ids if scientific.any() else ids.str.replace(r"\.0+$", "", regex=True)


def lost_digits(column: pa.Array) -> str | None:
    """A number in a column of floats that is too large to be exact; None without any."""
    if pa.types.is_dictionary(column.type):
        return lost_digits(column.dictionary)
    if not pa.types.is_floating(column.type):
        return None
    numbers = column.to_numpy(zero_copy_only=False)
    limit = 2.0 ** EXACT_BITS[column.type.bit_width]
    beyond = np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) >= limit))
    return repr(float(numbers[beyond[0]])) if len(beyond) else None


def _float_text(column: pa.Array) -> pa.Array:
    if pa.types.is_float16(column.type):  # Arrow would write its digits as those of 32 bits
        halves = column.to_numpy(zero_copy_only=False).astype(np.float16)
        shortest = pa.array([np.format_float_positional(v, trim="-") for v in halves], pa.string())
        return pc.if_else(pc.is_finite(column), shortest, None)
    finite = pc.if_else(pc.is_finite(column), column, None)
    wide = finite.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(wide), wide), pc.less(pc.abs(wide), 2.0**53))
    numbers = pc.if_else(whole, wide, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(numbers, finite.cast(pa.string()))


def _python(value: Any, kind: pa.DataType) -> Any:
    """An Arrow value as a Python value, its floats as short as their type allows."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type if kind != pa.uuid() else pa.string()
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if value is None:
        return None
    if any(is_kind(kind) for is_kind in NESTED):
        return [_python(one, kind.value_type) for one in value]
    if pa.types.is_struct(kind):
        return {field.name: _python(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        pairs = [(_python(k, kind.key_type), _python(v, kind.item_type)) for k, v in value]
        keys = {str(key) for key, _ in pairs}
        return (
            {str(k): v for k, v in pairs} if len(keys) == len(pairs) else [list(p) for p in pairs]
        )
    if pa.types.is_float32(kind):
        return float(str(np.float32(value)))
    if pa.types.is_float16(kind):
        return float(str(np.float16(value)))
    return value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_other)


def _other(value: object) -> str:
    if isinstance(value, bytes):
        return _bytes(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _bytes(value: bytes) -> str:
    """Bytes decoded as UTF-8, or their hex digits."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()
