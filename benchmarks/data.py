"""Large logs: seconds and peak memory of `hpgr validate` and `hpgr sessionize`, beside DuckDB.

    python benchmarks/data.py [--quick] [--events N] [--csv] [--out benchmarks/results/data.json]

Writes a generated log to a temporary folder and runs the two stages on it as processes of their
own, as `dvc repro` does. Beside validate, DuckDB reads the same file and counts; beside sessionize,
DuckDB cuts the validated events into sessions, numbers users and items, sorts and writes them.
`--quick` takes a million events instead of twenty. The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results_file import write_measured  # noqa: E402

EVENTS, QUICK_EVENTS = 20_000_000, 1_000_000
EVENTS_PER_USER, EVENTS_PER_SESSION = 100, 5
ITEMS = 50_000
START, YEAR, GAP_S = 1_600_000_000, 31_536_000, 60
ACTIONS, SHARES = ("view", "cart", "buy"), (0.8, 0.15, 0.05)

READ = """
SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), min(timestamp), max(timestamp)
FROM read_{kind}('{source}')
"""
CUT = """
SET threads = 2;
CREATE TABLE users AS SELECT user_id, row_number() OVER () - 1 AS user FROM
  (SELECT DISTINCT user_id FROM read_parquet('{source}'));
CREATE TABLE items AS SELECT item_id, row_number() OVER () + 1 AS item FROM
  (SELECT DISTINCT item_id FROM read_parquet('{source}'));
COPY (
  SELECT user, item, timestamp, sum(opens) OVER by_user AS session
  FROM (
    SELECT user, item, timestamp, row,
      coalesce(timestamp - lag(timestamp) OVER by_user > 1800, true)::INT AS opens
    FROM read_parquet('{source}') JOIN users USING (user_id) JOIN items USING (item_id)
    WINDOW by_user AS (PARTITION BY user ORDER BY timestamp, row)
  )
  WINDOW by_user AS (PARTITION BY user ORDER BY timestamp, row)
  ORDER BY user, timestamp, row
) TO '{target}' (FORMAT parquet);
"""


def generated(events: int) -> pa.Table:
    """A log in time order: skewed users and items, sessions of a few events, three actions."""
    random = np.random.default_rng(0)
    users, sessions = events // EVENTS_PER_USER, events // EVENTS_PER_SESSION
    skew = np.minimum(random.pareto(1.2, sessions) * users / 20, users - 1)
    session = np.sort(random.integers(0, sessions, events))
    pause = random.exponential(GAP_S, events).cumsum()
    begins = np.searchsorted(session, session)
    at = random.integers(0, YEAR, sessions)[session] + (pause - pause[begins]).astype(np.int64)
    order = np.argsort(at, kind="stable")
    item = np.minimum(random.pareto(1.0, events) * ITEMS / 50, ITEMS - 1).astype(np.int64)
    action = random.choice(len(ACTIONS), events, p=SHARES).astype(np.int8)
    return pa.table(
        {
            "user_id": skew.astype(np.int64)[session[order]],
            "item_id": item,
            "timestamp": START + at[order],
            "event": pa.DictionaryArray.from_arrays(action, list(ACTIONS)).cast(pa.string()),
        }
    )


def prepare(file: Path, events: int) -> None:
    """Write a log, as the suffix says, and the params.yaml of its workspace."""
    file.parent.mkdir(parents=True)
    if file.suffix == ".csv":
        pyarrow.csv.write_csv(generated(events), file)
    else:
        pq.write_table(generated(events), file)
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    columns = dict.fromkeys(values["data"]["columns"]) | {
        name: name for name in ("user_id", "item_id", "timestamp")
    }
    values["data"] |= {
        "path": "data/log",
        "format": "table",
        "interactions": file.name,
        "columns": columns | {"action": "event"},
    }
    values["sessionize"] |= {"positive_from": None, "positive_actions": ["buy"]}
    (file.parents[2] / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def measured(name: str, command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; its seconds by the wall and by the processor, and its peak memory in MB."""
    began = time.perf_counter()
    pid = os.posix_spawnp(
        "env", ["env", "-C", str(folder), *command], os.environ | {"PYTHONPATH": str(ROOT)}
    )
    _, status, used = os.wait4(pid, 0)
    spent = time.perf_counter() - began
    if status:
        raise SystemExit(f"{name} failed: {' '.join(command)[:300]}")
    return {
        f"{name}_s": round(spent, 2),
        f"{name}_cpu_s": round(used.ru_utime + used.ru_stime, 2),
        f"{name}_mb": round(used.ru_maxrss / 1024),
    }


def measure(folder: Path, events: int, *, csv: bool) -> dict[str, float]:
    """All figures of one log."""
    # In a process of its own: a process that starts others passes its peak memory on to them.
    source = folder / "data" / "log" / ("log.csv" if csv else "log.parquet")
    writer = multiprocessing.get_context("spawn").Process(target=prepare, args=(source, events))
    writer.start()
    writer.join()
    hpgr = [sys.executable, "-m", "hpgr.cli"]
    script = "import duckdb, sys; duckdb.connect().execute(sys.argv[1])"
    duckdb = [sys.executable, "-c", script]
    figures: dict[str, float] = {"events": events}
    figures |= measured("validate", [*hpgr, "validate"], folder)
    read = READ.format(kind="csv" if csv else "parquet", source=source)
    figures |= measured("duckdb_read", [*duckdb, read], folder)
    figures |= measured("sessionize", [*hpgr, "sessionize"], folder)
    validated = folder / "artifacts/validated/events.parquet"
    cut = CUT.format(source=validated, target=folder / "cut.parquet")
    figures |= measured("duckdb_cut", [*duckdb, cut], folder)
    ratio = figures["sessionize_s"] / figures["duckdb_cut_s"]
    return figures | {"sessionize_over_duckdb": round(ratio, 2)}


def main() -> None:
    """Print the figures and, if asked, write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--events", type=int)
    parser.add_argument("--csv", action="store_true", help="the log as text")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    events = asked.events or (QUICK_EVENTS if asked.quick else EVENTS)
    folder = Path(tempfile.mkdtemp(prefix="hpgr-data-"))
    try:
        figures = measure(folder, events, csv=asked.csv)
    finally:
        shutil.rmtree(folder)
    size = f"{events // 1_000_000}m"
    for name in ("validate_s", "sessionize_s"):
        figures[f"{name}_{size}"] = figures.pop(name)
    if asked.out:
        write_measured(asked.out, "data.py", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
