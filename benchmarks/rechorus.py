"""MovieLens-1M as ReChorus' task of click-through rate has it, as a log of the benchmark.

    python benchmarks/rechorus.py [FOLDER]

FOLDER (data/ml-1m, which `hpgr fetch ml-1m` fills) holds `ratings.dat` and `movies.dat`. Writes
`interactions.parquet` (user_id, item_id, timestamp, label) and `items.parquet` (item_id, title,
genres) to data/rechorus-ml-1m/.

A rating of 4 or 5 is label 1; ratings themselves are not kept. Users and items have at least five
events of label 1 among those kept. Of all days, in the time zone of its published counts, training
has the first 80 %, validation the next 10 % and test the last; of these two only users and items
that training has are kept: 983,836, 5,190 and 5,176 events. Source: `data/MovieLens_1M/` of
https://github.com/THUwangcy/ReChorus, whose table of results is this task's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from hpgr.runtime import UserError, atomic_path

LEAST = 5  # events of label 1
ZONE_S = 8 * 3600
DAY_S = 86400
SOURCE, TARGET = Path("data/ml-1m"), Path("data/rechorus-ml-1m")
COLUMNS = {
    "ratings.dat": ["user_id", "item_id", "rating", "timestamp"],
    "movies.dat": ["item_id", "title", "genres"],
}


def select(ratings: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the events of training, validation and test, each in order of time.

    Args:
        ratings: `user_id`, `item_id`, `rating` and `timestamp` (seconds).
    """
    log = ratings.assign(label=(ratings["rating"] >= 4).astype("int8")).drop(columns="rating")
    before = -1
    while before != len(log):  # leaving out an item can leave a user with too few
        before = len(log)
        liked = log[log["label"] == 1]
        for name in ("user_id", "item_id"):
            count = liked[name].value_counts()
            log = log[log[name].isin(count.index[count >= LEAST])]
    log = log.sort_values(["timestamp", "user_id"], kind="stable")
    day = (log["timestamp"] + ZONE_S) // DAY_S
    day = (day - day.min()) / (day.max() - day.min())
    train = log[day <= 0.8]
    known = log["user_id"].isin(train["user_id"]) & log["item_id"].isin(train["item_id"])
    return [train, log[known & (day > 0.8) & (day <= 0.9)], log[known & (day > 0.9)]]


def convert(source: Path, target: Path) -> None:
    """Write the log and its items to `target`.

    Raises:
        UserError: a file is missing in `source`.
    """
    tables = {}
    for name, columns in COLUMNS.items():
        if not (source / name).is_file():
            raise UserError(
                f"{source / name} not found: expected MovieLens-1M; `hpgr fetch ml-1m` brings it"
            )
        tables[name] = pd.read_csv(
            source / name, sep="::", engine="python", names=columns, encoding="latin-1"
        )
    parts = select(tables["ratings.dat"])
    target.mkdir(parents=True, exist_ok=True)
    written = {"interactions": pd.concat(parts), "items": tables["movies.dat"]}
    for name, table in written.items():
        with atomic_path(target / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    print(f"{target}: {', '.join(f'{len(part):,}' for part in parts)} events")


if __name__ == "__main__":
    convert(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE, TARGET)
