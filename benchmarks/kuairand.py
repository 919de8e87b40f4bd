"""KuaiRand-Pure's standard log from 25 April to 8 May 2022 as a log of the benchmark.

    python benchmarks/kuairand.py FOLDER

FOLDER holds `impressions.parquet` (user_id, item_id, timestamp, long_view), `history.parquet` (the
last 50 impressions of a user before them: user_id, position, item_id, long_view, last_timestamp)
and `items.parquet` (item_id, tag), made of KuaiRand-Pure (Gao et al., CIKM 2022, CC BY-SA 4.0,
https://kuairand.com). Writes `interactions.parquet` and `items.parquet` to
data/kuairand-pure-late/.

The history has an order and the time of its last event alone: earlier ones are put an hour apart,
so sessions and pauses among them mean nothing. The last 170,588 impressions, from 29 April on, are
the test split of a public contest on the full log, which trains on more (from 8 April, with times);
`hpgr validate` leaves out the exact duplicates among them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from hpgr.runtime import UserError, atomic_path

APART_S = 3600
TARGET = Path("data/kuairand-pure-late")


def convert(folder: Path, target: Path) -> None:
    """Write the log and its items to `target`.

    Raises:
        UserError: a table is missing in `folder`.
    """
    tables = {}
    for name in ("impressions", "history", "items"):
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise UserError(f"{path} not found: expected KuaiRand-Pure's tables in {folder}")
        tables[name] = pd.read_parquet(path)
    history = tables["history"].sort_values(["user_id", "position"], kind="stable")
    behind = history.groupby("user_id").cumcount(ascending=False)
    history["timestamp"] = history["last_timestamp"] - APART_S * behind
    columns = ["user_id", "item_id", "timestamp", "long_view"]
    shown = tables["impressions"].sort_values(["user_id", "timestamp"], kind="stable")
    log = pd.concat([history[columns], shown[columns]], ignore_index=True)
    target.mkdir(parents=True, exist_ok=True)
    for name, table in (("interactions", log), ("items", tables["items"][["item_id", "tag"]])):
        with atomic_path(target / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    print(f"{target}: {len(log):,} events")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), TARGET)
