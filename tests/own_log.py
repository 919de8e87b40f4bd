"""A user's own log for the tests of formats, validate and doctor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hpgr.config import Config, load_config

PARAMS = Path(__file__).parent.parent / "params.yaml"
START = 1_600_000_000  # 2020-09-13


@cache
def _project() -> Config:
    return load_config(PARAMS)


def config(folder: Path, *, limits: Mapping[str, Any] | None = None, **data: Any) -> Config:
    """The project's params.yaml, reading the table `log.csv` in `folder`.

    `data` changes keys of the data section ("columns" those of data.columns); `limits` those of
    the validate section.
    """
    cfg = _project()
    columns = cfg.data.columns.model_copy(update=data.pop("columns", {}))
    table = {"path": folder, "format": "table", "interactions": "log.csv"}
    changed = cfg.data.model_copy(update={**table, "columns": columns, **data})
    checked = cfg.validate_.model_copy(update=limits or {})
    return cfg.model_copy(update={"data": changed, "validate_": checked})


def good_rows(count: int) -> list[tuple[str, str, int]]:
    """User, item and time of `count` events, all different."""
    return [(f"u{n % 7}", f"i{n % 11}", START + 60 * n) for n in range(count)]


def write_csv(path: Path, rows: list[tuple[Any, ...]], names: str = "") -> Path:
    """Rows below a header; `names` is the header line, by default that of the contract."""
    header = names or "user_id,item_id,timestamp"
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
