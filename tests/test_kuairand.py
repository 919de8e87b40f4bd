"""KuaiRand's two tables as one log."""

import pandas as pd
import pytest

from benchmarks.kuairand import LOGS, VIDEOS, convert, convert_own
from hpgr.runtime import UserError


def test_history_comes_before_what_was_shown_and_keeps_its_order(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    rows = {
        "impressions": [
            {"user_id": 1, "item_id": 7, "timestamp": 20_000, "long_view": 1, "tab": 0},
            {"user_id": 1, "item_id": 8, "timestamp": 15_000, "long_view": 0, "tab": 0},
        ],
        "history": [
            {"user_id": 1, "position": 1, "item_id": 5, "long_view": 0, "last_timestamp": 9_000},
            {"user_id": 2, "position": 0, "item_id": 5, "long_view": 1, "last_timestamp": 5_000},
            {"user_id": 1, "position": 0, "item_id": 4, "long_view": 1, "last_timestamp": 9_000},
        ],
        "items": [{"item_id": 4, "tag": "1,2", "author_id": 3}],
    }
    for name, table in rows.items():
        pd.DataFrame(table).to_parquet(source / f"{name}.parquet")
    convert(source, target)
    log = pd.read_parquet(target / "interactions.parquet")
    assert log.to_dict("split")["data"] == [
        [1, 4, 5_400, 1],
        [1, 5, 9_000, 0],
        [2, 5, 5_000, 1],
        [1, 8, 15_000, 0],
        [1, 7, 20_000, 1],
    ]
    assert pd.read_parquet(target / "items.parquet").columns.tolist() == ["item_id", "tag"]


def test_a_table_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"impressions.parquet not found: expected KuaiRand-Pure"):
        convert(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


HEAD = "user_id,video_id,date,hourmin,time_ms,is_click,long_view,tab\n"


def test_the_owners_logs_become_one_in_the_order_of_milliseconds(tmp_path):
    (tmp_path / LOGS[0]).write_text(
        HEAD + "1,7,20220408,0,1649347200900,1,0,1\n1,8,20220408,0,1649347200100,1,1,1\n"
    )
    (tmp_path / LOGS[1]).write_text(HEAD + "0,7,20220422,0,1650556800000,0,1,1\n")
    (tmp_path / VIDEOS).write_text('video_id,author_id,tag\n7,3,"12,65"\n8,3,\n')
    convert_own(tmp_path)
    log = pd.read_parquet(tmp_path / "interactions.parquet")
    assert log.columns.tolist() == ["user_id", "item_id", "timestamp", "long_view"]
    assert log.to_numpy().tolist() == [
        [0, 7, 1_650_556_800, 1],
        [1, 8, 1_649_347_200, 1],
        [1, 7, 1_649_347_200, 0],
    ]
    items = pd.read_parquet(tmp_path / "items.parquet").astype(object)
    assert items.where(items.notna(), None).to_numpy().tolist() == [[7, "12,65"], [8, None]]


def test_a_file_of_the_owner_that_is_missing_is_named(tmp_path):
    (tmp_path / LOGS[0]).write_text(HEAD)
    with pytest.raises(UserError, match=rf"{LOGS[1]} not found: fetch it with `hpgr fetch"):
        convert_own(tmp_path)
