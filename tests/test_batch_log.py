"""Batch scoring and the log that it reads: replaced under its hands, damaged, no room to write."""

import errno
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_batch import answers, asked

from hpgr.data.log import EventLog
from hpgr.runtime import UserError
from hpgr.serving.batch import recommend_all
from hpgr.serving.champion import load_champion
from hpgr.workspace import HERE

pytestmark = pytest.mark.usefixtures("own_registry")


def put_other_sessions():
    """Another log in the place of this one, as `dvc checkout` puts it: other users, other items."""
    other = HERE.sessions.with_name("other")
    shutil.copytree(HERE.sessions, other)
    for name, column in (("users", "user_id"), ("items", "item_id")):
        table = pq.read_table(other / f"{name}.parquet").to_pydict()
        table[column] = table[column][::-1]
        pq.write_table(pa.table(table), other / f"{name}.parquet")
    HERE.sessions.rename(HERE.sessions.with_name("before"))
    other.rename(HERE.sessions)


def test_a_log_that_is_replaced_while_it_is_read_is_refused(monkeypatch):
    opened = EventLog.open

    def replaced(folder):
        log = opened(folder)
        put_other_sessions()
        return log

    monkeypatch.setattr(EventLog, "open", replaced)
    with pytest.raises(UserError, match="the log changed while it was read: run again"):
        recommend_all(asked())
    assert not Path("artifacts/recommendations").exists()


def test_a_log_that_is_replaced_after_it_was_read_changes_nothing(monkeypatch):
    before = recommend_all(asked())
    expected = answers(before)
    shutil.rmtree(before.folder)

    def fetched(cfg, workspace):
        put_other_sessions()
        return load_champion(cfg, workspace)

    monkeypatch.setattr("hpgr.serving.batch.load_champion", fetched)
    done = recommend_all(asked())
    assert done.folder == before.folder
    assert answers(done).equals(expected)


@pytest.mark.parametrize(
    ("file", "size", "message"),
    [
        ("arrays/item.npy", None, "item.npy not found: run the stages before recommend-all first"),
        ("arrays/item.npy", 200, r"artifacts/sessions/arrays/item.npy is damaged .*`dvc repro`"),
        ("users.parquet", 100, r"artifacts/sessions/users.parquet is damaged .*`dvc repro`"),
        ("stats.json", 5, r"artifacts/sessions/stats.json is damaged .*`dvc repro`"),
    ],
)
def test_a_damaged_log_is_one_message(file, size, message):
    path = HERE.sessions / file
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    with pytest.raises(UserError, match=message):
        recommend_all(asked())


def test_a_full_disk_is_one_message(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hpgr.serving.batch.pq.write_table", full)
    with pytest.raises(UserError, match="no room left to write artifacts/recommendations"):
        recommend_all(asked())
