"""KuaiRand-Pure's standard log as a log of the benchmark.

    hpgr fetch kuairand-pure && python benchmarks/kuairand.py data/kuairand-pure
    python benchmarks/kuairand.py FOLDER

The first makes `interactions.parquet` and `items.parquet` of the owner's files (Gao et al., CIKM
2022, CC BY-SA 4.0, https://kuairand.com) beside them: every impression from 8 April to 8 May 2022,
whether it was watched long, in seconds; order inside a second is that of the milliseconds.

The second is for whoever has the last two weeks alone: FOLDER holds `impressions.parquet` (user_id,
item_id, timestamp, long_view), `history.parquet` (the last 50 impressions of a user before them:
user_id, position, item_id, long_view, last_timestamp) and `items.parquet` (item_id, tag). Writes to
data/kuairand-pure-late/. The history has an order and the time of its last event alone: earlier
ones are put an hour apart, so sessions and pauses among them mean nothing.

The last 170,588 impressions, from 29 April on, are the test split of a public contest on the full
log, which trains on what is before 22 April; `hpgr validate` leaves out the exact duplicates among
them.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd

from hpgr.cli import run
from hpgr.runtime import UserError, atomic_path

APART_S = 3600
LATE = Path("data/kuairand-pure-late")
LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
VIDEOS = "video_features_basic_pure.csv"


def convert_own(folder: Path) -> None:
    """Write the log and its items of the owner's files beside them.

    Raises:
        UserError: a file is missing in `folder`.
    """
    for name in (*LOGS, VIDEOS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} not found: fetch it with `hpgr fetch kuairand-pure`")
    wanted = ["user_id", "video_id", "time_ms", "long_view"]
    log = pd.concat([pd.read_csv(folder / name, usecols=wanted) for name in LOGS])
    log = log.sort_values(["user_id", "time_ms"], kind="stable")
    log["timestamp"] = log["time_ms"] // 1000
    videos = pd.read_csv(folder / VIDEOS, usecols=["video_id", "tag"], dtype={"tag": str})
    named = {"video_id": "item_id"}
    columns = ["user_id", "item_id", "timestamp", "long_view"]
    _write(folder, log.rename(columns=named)[columns], videos.rename(columns=named))


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
    _write(target, log, tables["items"][["item_id", "tag"]])


def _write(target: Path, log: pd.DataFrame, items: pd.DataFrame) -> None:
    for name, table in (("interactions", log), ("items", items)):
        with atomic_path(target / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    print(f"{target}: {len(log):,} events")


def main(arguments: list[str]) -> None:
    """Convert the folder that the command line names.

    Raises:
        UserError: it names none, or a file is missing there.
    """
    if len(arguments) != 1:
        raise UserError(f"found {' '.join(arguments)!r}, expected one folder of KuaiRand-Pure")
    folder = Path(arguments[0])
    if (folder / LOGS[0]).is_file():
        convert_own(folder)
    else:
        convert(folder, LATE)


if __name__ == "__main__":
    run(partial(main, sys.argv[1:]))
