"""ReChorus' selection of MovieLens-1M, on a small log with every case."""

import pandas as pd
import pytest

from benchmarks.rechorus import DAY_S, ZONE_S, convert, select
from hpgr.runtime import UserError

COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
MIDNIGHT = 1000 * DAY_S - ZONE_S  # of the zone


def dense(days=100):
    """Five users that like five items at the first midnight, and one event that sets the end."""
    rows = [(user, item, 5, MIDNIGHT) for user in range(5) for item in range(5)]
    return [*rows, (0, 0, 3, MIDNIGHT + days * DAY_S)]


def selected(*rows):
    parts = select(pd.DataFrame([*dense(), *rows], columns=COLUMNS))
    return [[*part[["user_id", "item_id", "label"]].itertuples(index=False)] for part in parts]


def test_days_of_the_zone_decide_what_is_validation_and_test():
    """The last second of day 80 is training; a day is counted whole."""
    rows = [
        (1, 1, 4, MIDNIGHT + 81 * DAY_S - 1),
        (2, 1, 3, MIDNIGHT + 81 * DAY_S),
        (3, 1, 4, MIDNIGHT + 91 * DAY_S - 1),
        (4, 1, 2, MIDNIGHT + 91 * DAY_S),
    ]
    train, validation, test = selected(*rows)
    assert train[25:] == [(1, 1, 1)]
    assert validation == [(2, 1, 0), (3, 1, 1)]
    assert test == [(4, 1, 0), (0, 0, 0)]


def test_what_training_does_not_have_is_not_judged():
    late = MIDNIGHT + 85 * DAY_S
    # User 7 has liked enough, but only in validation; so has item 7.
    rows = [(7, item, 5, late) for item in range(5)] + [(user, 7, 5, late) for user in range(5)]
    assert selected(*rows)[1] == []


def test_leaving_out_an_item_can_leave_out_a_user():
    """Item 8 is liked by four alone; then user 8 likes only four items."""
    rows = [(user, 8, 5, MIDNIGHT) for user in (0, 1, 2)]
    rows += [(8, item, 4, MIDNIGHT) for item in (0, 1, 2, 3, 8)]
    train = selected(*rows)[0]
    assert len(train) == 25 and {row[0] for row in train} == set(range(5))


def test_the_log_holds_the_parts_in_order_of_time_and_no_rating(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with pytest.raises(UserError, match=r"ratings.dat not found: .*hpgr fetch ml-1m"):
        convert(source, target)
    source.mkdir()
    lines = ["::".join(map(str, row)) for row in dense()]
    (source / "ratings.dat").write_text("\n".join(lines))
    (source / "movies.dat").write_text("0::Caf\xe9::Drama|War\n", encoding="latin-1")
    convert(source, target)
    log = pd.read_parquet(target / "interactions.parquet")
    assert log.columns.tolist() == ["user_id", "item_id", "timestamp", "label"]
    assert len(log) == 26 and log["timestamp"].is_monotonic_increasing
    items = pd.read_parquet(target / "items.parquet")
    assert items.to_dict("records") == [{"item_id": 0, "title": "Caf\xe9", "genres": "Drama|War"}]
