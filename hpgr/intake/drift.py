"""New events compared with the newest of the log: volume, drift, unknown items.

Two samples of one long-tailed catalogue differ much by chance: 1,000 events of MovieLens-1M have a
Jensen-Shannon divergence of .4 from the 20,000 before them without any drift. So the divergence is
corrected for chance, like the adjusted Rand index: 0 if the two samples are as far apart as random
parts of their union, 1 if they share nothing. Reads Parquet files of accepted events.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from hpgr.intake.contract import ACTION, ITEM, ROW, TIMESTAMP
from hpgr.intake.staging import open_duckdb

if TYPE_CHECKING:
    from hpgr.config import Refresh

SHORTEST_SPAN_S = 3600  # events a day are computed over at least an hour
SPLITS = 5  # random splits; their mean divergence is that of chance


def drift(one: np.ndarray, other: np.ndarray) -> float:
    """Chance-corrected Jensen-Shannon divergence (base 2) of two samples, in [0, 1].

    (found - expected) / (1 - expected), not below 0, where `expected` is the mean divergence of
    random splits of the pooled events into samples of the same sizes. The same counts give the
    same figure.

    Args:
        one: events of each kind in one sample, int64 [K].
        other: the same kinds in the other, int64 [K].

    Raises:
        ValueError: a sample has no event.
    """
    size, pooled = int(one.sum()), one + other
    if size == 0 or other.sum() == 0:
        raise ValueError("a sample without events has no distribution")
    random = np.random.default_rng(0)
    halves = random.multivariate_hypergeometric(pooled, size, SPLITS, method="marginals")
    expected = float(np.mean([_divergence(half, pooled - half) for half in halves]))
    if expected >= 1:  # one event against one other has no meaning
        return 0.0
    return float(np.clip((_divergence(one, other) - expected) / (1 - expected), 0, 1))


def _divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon divergence; SciPy gives its square root."""
    return float(jensenshannon(one, other, base=2)) ** 2


def compare(batch: Path, log: Path, limits: Refresh) -> dict[str, Any]:
    """Figures of the accepted events `batch`, compared with the newest events of `log`.

    The newest events are as many as the batch has, but at least `limits.reference_events`. Drift of
    items is measured on the items that the log has; all others are unknown. A figure is None if
    there is no event to compute it from.
    """
    with open_duckdb(batch.parent) as connection:
        connection.read_parquet(str(batch)).create_view("batch")
        connection.read_parquet(glob.escape(str(log))).create_view("log")
        (rows,) = connection.execute("SELECT count(*) FROM batch").fetchall()[0]
        connection.execute(
            f"CREATE TABLE newest AS SELECT {ITEM}, {ACTION}, {TIMESTAMP} FROM log "
            f"ORDER BY {TIMESTAMP} DESC, {ROW} DESC LIMIT {max(rows, limits.reference_events)}"
        )

        def span(table: str) -> tuple[int, int | None, int | None]:
            sql = f"SELECT count(*), min({TIMESTAMP}), max({TIMESTAMP}) FROM {table}"
            return connection.execute(sql).fetchall()[0]

        def distributions(column: str, where: str = "") -> tuple[np.ndarray, np.ndarray]:
            """Events of each value in the batch and in the newest events, in the values' order."""
            found = connection.execute(
                f"SELECT sum(here)::BIGINT AS here, sum(there)::BIGINT AS there FROM ("
                f" SELECT {column}, 1 AS here, 0 AS there FROM batch {where}"
                f" UNION ALL SELECT {column}, 0, 1 FROM newest"
                f") GROUP BY {column} ORDER BY {column}"
            ).fetchnumpy()
            return found["here"].astype(np.int64), found["there"].astype(np.int64)

        known = f"WHERE {ITEM} IN (SELECT {ITEM} FROM log)"
        items, actions = distributions(ITEM, known), distributions(ACTION)
        ((late,),) = connection.execute(
            f"SELECT count(*) FROM batch WHERE {TIMESTAMP} < (SELECT max({TIMESTAMP}) FROM log)"
        ).fetchall()
        here, there = span("batch"), span("newest")
    return {
        "first_timestamp": here[1],
        "last_timestamp": here[2],
        "late": late,
        "events_per_day": _per_day(*here),
        "events_per_day_before": _per_day(*there),
        "item_drift": drift(*items) if items[0].any() else None,
        "action_drift": drift(*actions) if rows else None,
        "unknown_items": 1 - int(items[0].sum()) / rows if rows else None,
    }


def _per_day(rows: int, first: int | None, last: int | None) -> float | None:
    if first is None or last is None:
        return None
    return rows * 86400 / max(last - first, SHORTEST_SPAN_S)
