"""Batch scoring: the same answers as one by one, in parts that survive interruptions."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import get_client
from serving_project import PYTHON, environment, promote, register_another

import hpgr.serving.batch
from hpgr.config import ConfigError, load_config
from hpgr.data.log import FIRST_ITEM, EventLog
from hpgr.registry.tracking import connect
from hpgr.runtime import UserError, read_json
from hpgr.serving.batch import MANIFEST, recommend_all
from hpgr.serving.champion import load_champion
from hpgr.serving.typed_request import of_user
from hpgr.workspace import HERE

COLUMNS = ["user_id", "rank", "item_id", "title", "score", "similarity"]
USERS = 40


@pytest.fixture
def project(own_registry):
    """A copy of the registered project; parts of 16 users."""
    text = (own_registry / "params.yaml").read_text()
    (own_registry / "params.yaml").write_text(
        text.replace("chunk_users: 1024 ", "chunk_users: 16 ")
    )
    return own_registry


def asked(**changes):
    cfg = load_config()
    return cfg.model_copy(update={"recommend": cfg.recommend.model_copy(update=changes)})


def answers(done):
    """All rows of the parts, in order."""
    parts = sorted(done.folder.glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts]).to_pandas()


def test_every_user_gets_the_answer_of_a_single_request(project):
    done = recommend_all(asked(at=1_200_000_000))
    found = answers(done)
    assert list(found.columns) == COLUMNS
    recommender = load_champion(load_config()).recommender
    users = pq.read_table(HERE.sessions / "users.parquet")["user_id"].to_pylist()
    assert found["user_id"].drop_duplicates().tolist() == users
    for user, rows in found.groupby("user_id"):
        (answer,) = recommender.recommend([of_user(user, "1200000000")], k=10)
        assert rows["rank"].tolist() == list(range(1, len(answer.items) + 1))
        assert rows["item_id"].tolist() == [item.item_id for item in answer.items]
        assert rows["title"].tolist() == [item.title for item in answer.items]
        for name in ("score", "similarity"):
            single = [getattr(item, name) for item in answer.items]
            np.testing.assert_allclose(rows[name], single, rtol=0, atol=1e-6)


def test_without_a_time_it_is_asked_a_second_after_the_log_ends(project):
    log = EventLog.open(HERE.sessions / "arrays")
    assert recommend_all(asked()).manifest["at"] == log.timestamp.max() + 1


def test_only_what_happened_before_the_time_counts(project):
    """Users without an event before it are newcomers; the others are answered from their past."""
    log = EventLog.open(HERE.sessions / "arrays")
    first = np.asarray(log.timestamp[log.user_offsets[:-1]])
    at = int(np.median(first))
    found = answers(recommend_all(asked(at=at)))
    newcomers = {f"user{u}" for u in np.flatnonzero(first >= at)}
    assert 0 < len(newcomers) < USERS
    assert set(found.loc[found["similarity"].isna(), "user_id"]) == newcomers
    recommender = load_champion(load_config()).recommender
    for user in sorted(set(found["user_id"]) - newcomers)[:5]:
        (answer,) = recommender.recommend([of_user(user, str(at))], k=10)
        assert found.loc[found["user_id"] == user, "item_id"].tolist() == [
            item.item_id for item in answer.items
        ]


def test_a_log_with_other_indices_gets_the_same_answers(project):
    """External ids connect the two: other indices and items never seen change nothing."""
    before = answers(recommend_all(asked()))
    log = EventLog.open(HERE.sessions / "arrays")
    new = log.meta.num_items + 3  # three items more than the model knows
    permutation = np.r_[0, 1, FIRST_ITEM + np.random.default_rng(0).permutation(new - FIRST_ITEM)]
    np.save(HERE.sessions / "arrays/item.npy", permutation[log.item].astype(np.int32))
    meta = read_json(HERE.sessions / "arrays/meta.json")
    (HERE.sessions / "arrays/meta.json").write_text(json.dumps({**meta, "num_items": new}))
    items = pq.read_table(HERE.sessions / "items.parquet").to_pandas()
    ids = [*items["item_id"], "new1", "new2", "new3"]
    table = {"item": permutation[FIRST_ITEM:].astype(np.int32), "item_id": ids}
    pq.write_table(pa.table(table), HERE.sessions / "items.parquet")
    actions = pq.read_table(HERE.sessions / "actions.parquet").to_pandas()
    swapped = {"action": actions["action"].to_numpy()[::-1].copy(), "name": actions["name"]}
    pq.write_table(pa.table(swapped), HERE.sessions / "actions.parquet")
    other = np.array([0, 2, 1], dtype=np.int16)[log.action]
    np.save(HERE.sessions / "arrays/action.npy", other)
    after = recommend_all(asked())
    assert after.scored_users == USERS
    found = answers(after)
    assert found[["user_id", "rank", "item_id"]].equals(before[["user_id", "rank", "item_id"]])
    np.testing.assert_allclose(found["score"], before["score"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seen", [None, "drop", "keep"])
def test_items_that_a_user_had_before_are_kept_or_dropped(project, seen):
    """With no word on it they are dropped: so the version was judged."""
    log = EventLog.open(HERE.sessions / "arrays")
    catalogue = {f"id{i}" for i in range(FIRST_ITEM, log.meta.num_items)}
    found = answers(recommend_all(asked(k=len(catalogue), seen=seen)))
    for user in range(USERS):
        rows = log.item[log.user_offsets[user] : log.user_offsets[user + 1]]
        got = set(found.loc[found["user_id"] == f"user{user}", "item_id"])
        assert got == catalogue - (set() if seen == "keep" else {f"id{i}" for i in rows})


def test_allow_and_deny_lists(project, capsys):
    Path("allow.txt").write_bytes("\ufeffid5\r\n id6 \r\n\r\nid7\r\nnowhere\r\n".encode())
    Path("deny.txt").write_text("id6\n")
    found = answers(recommend_all(asked(allow=Path("allow.txt"), deny=Path("deny.txt"))))
    assert set(found["item_id"]) == {"id5", "id7"}
    message = capsys.readouterr().out
    assert "warning: allow.txt: the model does not know 1 of its 4 item ids: 'nowhere'" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "none of the 0 item ids to allow"),
        ("nowhere\nnothing\n", "none of its 2 lines is the id of one of the model's 30 items"),
        (b"\xff\xfe\x00", "expected a text file of item ids, one a line"),
        (None, "expected a text file of item ids, one a line"),
    ],
)
def test_a_wrong_list_is_refused(project, content, message):
    if content is not None:
        Path("list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        recommend_all(asked(allow=Path("list.txt")))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (10, "the log's first event happened at"),
        ("yesterday", "recommend.at 'yesterday': expected seconds since 1970 or a time"),
        (1_200_000_000_000, "expected seconds since 1970, not milliseconds"),
    ],
)
def test_a_wrong_time_is_refused(project, at, message):
    with pytest.raises(UserError, match=message):
        recommend_all(asked(at=at))


def test_a_finished_answer_is_not_scored_again_and_every_change_of_it_is(project):
    first = recommend_all(asked())
    assert first.scored_users == USERS
    assert read_json(first.folder / MANIFEST) == first.manifest
    again = recommend_all(asked())
    assert (again.folder, again.scored_users) == (first.folder, 0)
    Path("deny.txt").write_text("id6\n")
    folders = {first.folder}
    changed = ({"k": 3}, {"at": 1_200_000_000}, {"seen": "keep"}, {"deny": Path("deny.txt")})
    for changes in changed:
        done = recommend_all(asked(**changes))
        assert done.scored_users == USERS
        folders.add(done.folder)
    promote(register_another(11))
    done = recommend_all(asked())
    assert done.scored_users == USERS and done.folder.name.startswith("hpgr-2-")
    assert len(folders | {done.folder}) == 6


@pytest.mark.parametrize("harm", ["truncated", "flipped", "deleted", "not in the manifest"])
def test_a_damaged_part_is_scored_again_and_no_other(project, harm):
    done = recommend_all(asked())
    before = answers(done)
    part = done.folder / "part-00001.parquet"
    content = part.read_bytes()
    if harm == "truncated":
        part.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        part.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif harm == "deleted":
        part.unlink()
    else:  # killed between the part and the manifest
        manifest = read_json(done.folder / MANIFEST)
        del manifest["parts"][part.name]
        (done.folder / MANIFEST).write_text(json.dumps(manifest))
    again = recommend_all(asked())
    assert again.scored_users == 16
    assert answers(again).equals(before)


def test_a_damaged_manifest_costs_a_new_run_and_nothing_else(project):
    done = recommend_all(asked())
    before = answers(done)
    (done.folder / MANIFEST).write_text('{"parts": ')
    again = recommend_all(asked())
    assert again.scored_users == USERS
    assert answers(again).equals(before)


SLOW = """
import sys, time
import hpgr.cli
from hpgr.serving.batch import Scoring

whole = Scoring.table

def slowly(self, start, stop):
    print("part", start, flush=True)
    if start >= 16:
        time.sleep(60)
    return whole(self, start, stop)

Scoring.table = slowly
sys.argv = ["hpgr", "recommend-all"]
hpgr.cli.main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_is_continued_by_the_next(project, how):
    process = subprocess.Popen(
        [PYTHON, "-c", SLOW],
        env=environment(project),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stdout:
        if line == "part 16\n":  # the first part is done, the second under way
            break
    with pytest.raises(UserError, match="another run is writing"):
        recommend_all(asked())
    process.send_signal(how)
    assert process.wait(20) == (128 + how if how == signal.SIGTERM else -how)
    process.stdout.close()
    (folder,) = Path("artifacts/recommendations").iterdir()
    (folder / ".part-00001.parquet.abc").write_bytes(b"half")  # as a kill inside a write leaves it
    done = recommend_all(asked())
    assert done.folder == folder
    assert done.scored_users == USERS - 16
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", MANIFEST, "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip
    assert answers(done)["user_id"].nunique() == USERS


def test_the_command_shows_progress_and_where_the_answers_lie(project):
    done = subprocess.run(
        [PYTHON, "-m", "hpgr.cli", "recommend-all"],
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "hpgr version 1: 40 users in artifacts/recommendations/hpgr-1-" in done.stdout
    assert "40/40" in done.stderr


def test_a_deny_list_of_unknown_items_alone_denies_nothing(project, capsys):
    before = answers(recommend_all(asked()))
    Path("deny.txt").write_text("nowhere\n")
    assert answers(recommend_all(asked(deny=Path("deny.txt")))).equals(before)
    message = capsys.readouterr().out
    assert "warning: deny.txt: the model does not know 1 of its 1 item ids; is it a list" in message
    assert "nowhere" not in message  # what is no list of ids may be anything


def test_what_is_no_file_is_refused_before_it_is_read(project):
    os.mkfifo("pipe")
    Path("dir").mkdir()
    for path, message in {
        "pipe": "neither a file",
        "dir": "is a folder",
        "none": "not found",
    }.items():
        with pytest.raises(UserError, match=f"^{path} .*{message}|^{path} {message}"):
            recommend_all(asked(deny=Path(path)))


def test_a_foreign_line_among_the_ids_is_cut_and_escaped(project, capsys):
    Path("deny.txt").write_text("id6\nx\x1b[31m" + "y" * 500 + "\n")
    recommend_all(asked(deny=Path("deny.txt")))
    message = capsys.readouterr().out
    assert r"item ids: 'x\x1b[31my" in message and "...\n" in message
    assert "y" * 60 not in message and "\x1b" not in message


def test_a_deny_list_of_the_whole_catalogue_is_warned_of(project, capsys):
    Path("deny.txt").write_text("\n".join(f"id{i}" for i in range(2, 32)))
    assert not len(answers(recommend_all(asked(deny=Path("deny.txt")))))
    message = capsys.readouterr().out
    assert "warning: recommend.allow and recommend.deny leave no item: every answer is" in message


def test_the_manifest_says_how_many_users_the_log_left_out(project):
    manifest = recommend_all(asked()).manifest
    assert (manifest["users"], manifest["dropped_users"]) == (USERS, 3)


def test_without_a_sessionized_log_the_message_says_what_to_run(project):
    shutil.rmtree(HERE.sessions / "arrays")
    with pytest.raises(UserError, match=r"arrays not found: run `hpgr sessionize`"):
        recommend_all(asked())


def test_without_a_champion_nothing_is_written(project):
    connect().delete_registered_model_alias("hpgr", "champion")
    with pytest.raises(UserError, match="the registry has no hpgr@champion"):
        recommend_all(asked())
    assert not Path("artifacts/recommendations").exists()


def test_the_flow_shows_progress_first_answers_and_the_folder(project, prefect_server):
    from flows.recommend import recommend

    Path("deny.txt").write_text("id6\n")
    returned = recommend(k=3, at="2008-01-10T21:20:00", deny="deny.txt")
    assert (returned["at"], returned["k"], returned["scored_users"]) == (1_200_000_000, 3, USERS)
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
    assert artifacts["recommend"].data == 100.0
    rows = json.loads(artifacts["recommendations"].data)
    assert [row["user_id"] for row in rows] == [f"user{u}" for u in range(5) for _ in range(3)]
    assert set(rows[0]) == set(COLUMNS)
    assert str(Path(returned["folder"]).resolve()) in artifacts["recommendations"].description
    assert (Path(returned["folder"]) / MANIFEST).is_file()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, r"in 1 place:\n  recommend.k: found 0, expected at least 1"),
        ({"at": "noon"}, "recommend.at 'noon'"),
        ({"at": 10}, "recommend.at is 10, the log's first event happened at"),
    ],
)
def test_a_wrong_parameter_of_the_flow_is_one_message(project, prefect_server, parameters, message):
    from flows.recommend import recommend

    with pytest.raises((UserError, ConfigError), match=message):
        recommend(**parameters)


def test_users_of_long_histories_are_answered_in_parts(project, monkeypatch):
    """Two users' events at a time at most, and the same answers."""
    expected = answers(recommend_all(asked(at=1_200_000_000)))
    shutil.rmtree("artifacts/recommendations")
    longest = int(np.diff(EventLog.open(HERE.sessions / "arrays").user_offsets).max())
    monkeypatch.setattr("hpgr.data.histories.EVENTS_AT_A_TIME", 2 * longest)
    held, plain = [], hpgr.serving.batch.histories
    monkeypatch.setattr(
        "hpgr.serving.batch.histories",
        lambda *args: held.append(plain(*args)) or held[-1],
    )
    found = answers(recommend_all(asked(at=1_200_000_000)))
    assert max(h.offsets[-1] for h in held) <= 2 * longest
    assert len(held) > USERS / 16 + 1
    exact = ["user_id", "rank", "item_id", "title"]
    pd.testing.assert_frame_equal(found[exact], expected[exact])
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6)
