"""`hpgr serve`: the application in process, and the real server as its users meet it."""

import asyncio
import json
import subprocess
from functools import partial
from math import log
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pytest
from serving_project import HISTORY, LIKE_WEIGHT, NOW, ONE, PYTHON, call, environment

from hpgr.cli import app as commands
from hpgr.config import load_config
from hpgr.data.histories import histories
from hpgr.data.log import EventLog
from hpgr.model.scoring import Scorer
from hpgr.registry.tracking import connect
from hpgr.runtime import UserError
from hpgr.serving.champion import Champion
from hpgr.serving.listen import indexed
from hpgr.serving.server import create_app


@pytest.fixture
def inside(registered_project, monkeypatch):
    monkeypatch.chdir(registered_project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield registered_project
    mlflow.set_tracking_uri(None)


@pytest.fixture
def champion(inside):
    watch = Champion("hpgr", connect)
    watch.look()
    assert watch.problem is None
    return watch


@pytest.fixture
def ask(champion):
    """POST to the application: (status, body)."""
    app = create_app(champion, load_config().serve)
    return lambda body, path="/recommend", **more: call(app, "POST", path, json=body, **more)


def changed(**columns):
    return {"requests": [{"request_time": NOW, **HISTORY, **columns}]}


def test_an_answer_names_items_anchors_and_the_version(ask):
    status, body = ask(ONE)
    assert status == 200
    assert body["model"] == {"name": "hpgr", "version": 1}
    (answer,) = body["answers"]
    assert answer["source"] == "history" and answer["unknown_items"] == 0
    assert len(answer["items"]) == 5
    assert set(answer["items"][0]) == {"item_id", "title", "score", "similarity", "anchors"}
    orders = [placed(item, LIKE_WEIGHT) for item in answer["items"]]
    assert orders == sorted(orders, reverse=True)
    assert {anchor["title"] for anchor in answer["anchors"]} == {"Title 3", "Title 4"}
    assert sum(anchor["weight"] for anchor in answer["anchors"]) == pytest.approx(1)
    for item in answer["items"]:
        assert {anchor["item_id"] for anchor in item["anchors"]} == {"id3", "id4"}
        assert sum(anchor["weight"] for anchor in item["anchors"]) == pytest.approx(1)
    weights = [[anchor["weight"] for anchor in item["anchors"]] for item in answer["items"]]
    assert weights[0] != weights[1]


def placed(item, weight):
    """The number that orders an answer, but for a constant."""
    return item["similarity"] / load_config().finetune.temperature + weight * log(item["score"])


def test_a_request_may_ask_for_another_order(ask):
    own = ask(ONE)[1]["answers"][0]["items"]
    lists = []
    for weight in (0, 0.0, 40, 100.0):
        status, body = ask({**ONE, "like_weight": weight})
        assert status == 200
        items = body["answers"][0]["items"]
        orders = [placed(item, weight) for item in items]
        assert orders == sorted(orders, reverse=True)
        lists.append([item["item_id"] for item in items])
    assert lists[0] == lists[1] != lists[3]
    assert ask({**ONE, "like_weight": LIKE_WEIGHT})[1]["answers"][0]["items"] == own
    assert ask({**ONE, "like_weight": None})[1]["answers"][0]["items"] == own


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (-1, "greater than or equal to 0, found -1"),
        (100.5, "less than or equal to 100, found 100.5"),
        ("1", "valid number, found '1'"),
        (True, "valid number, found True"),
        (10**400, "valid number, found a number of"),
    ],
)
def test_a_weight_that_cannot_be_is_one_message(ask, weight, why):
    status, body = ask({**ONE, "like_weight": weight})
    assert status == 422
    assert body["detail"].startswith("like_weight: Input should be ")
    assert why in body["detail"] and ";" not in body["detail"]


def test_a_person_may_ask_for_another_order(inside, capsys):
    history = ["recommend", "--history", "id3, id4", "--at", str(NOW), "--k", "28"]
    printed = {}
    for weight in (None, "0", "2", "100"):
        asked = history if weight is None else [*history, "--like-weight", weight]
        commands(asked, standalone_mode=False)
        printed[weight] = capsys.readouterr().out
    assert printed[None] == printed["2"]  # LIKE_WEIGHT
    assert len(set(printed.values())) == 3
    for weight in ("-1", "nan", "101"):
        with pytest.raises(UserError, match=r"like_weight is .*, expected a number from 0"):
            commands([*history, "--like-weight", weight], standalone_mode=False)


def test_the_schema_describes_the_weight(champion):
    schema = call(create_app(champion, load_config().serve), "GET", "/openapi.json")[1]
    weight = schema["components"]["schemas"]["Question"]["properties"]["like_weight"]
    assert weight["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 100}
    assert "log p(next) + w log p(like)" in weight["description"]


def test_several_requests_are_answered_in_their_order(ask):
    other = {"request_time": NOW, "item_ids": ["id9"], "timestamps": [NOW - 5]}
    body = ask({"requests": [ONE["requests"][0], other, ONE["requests"][0]], "k": 3})[1]
    one, two, three = body["answers"]
    for first, last in zip(one["items"], three["items"], strict=True):
        assert last["item_id"] == first["item_id"]  # a row's place may move the scores' last bit
        assert last["score"] == pytest.approx(first["score"], abs=1e-6)
    assert two["anchors"] == [{"item_id": "id9", "title": "Title 9", "weight": 1.0}]


def test_without_k_an_answer_has_as_many_items_as_params_say(ask):
    body = ask({"requests": ONE["requests"]})[1]
    assert len(body["answers"][0]["items"]) == load_config().serve.k


def test_ids_and_actions_may_be_whole_numbers(ask):
    text, number = (
        changed(item_ids=[i, "id3"], actions=[a, None]) for i, a in (("7", "5"), (7, 5))
    )
    assert ask(text) == ask(number)


def test_a_newcomer_gets_what_is_popular(ask):
    status, body = ask({"requests": [{"request_time": NOW}], "k": 3})
    assert status == 200
    (answer,) = body["answers"]
    assert (answer["source"], answer["anchors"], len(answer["items"])) == ("popular", [], 3)
    assert all(item["similarity"] is None and item["score"] > 0 for item in answer["items"])


def test_unknown_items_alone_are_a_history(ask):
    status, body = ask(changed(item_ids=["x", "y"]))
    assert status == 200
    assert body["answers"][0]["unknown_items"] == 2
    assert body["answers"][0]["source"] == "history"


def test_lists_filter_the_answer(ask):
    allowed = ask({**ONE, "allow": ["id7", "id8", "id9"], "deny": ["id8"]})[1]["answers"][0]
    assert {item["item_id"] for item in allowed["items"]} == {"id7", "id9"}


def test_an_index_over_the_catalogue_changes_no_answer_where_it_finds_everything(inside):
    params = load_config()
    limits = params.serve.model_copy(update={"index_items": 2, "index_recall": 1.0})
    status, exact = answered_by(Champion("hpgr", connect), params.serve)
    indexed_champion = Champion("hpgr", connect, partial(indexed, limits))
    _, found = answered_by(indexed_champion, params.serve)
    assert status == 200
    index = indexed_champion.served.recommender.finder.index
    assert index.probes == index.cells > 1
    assert [item["item_id"] for item in found] == [item["item_id"] for item in exact]
    for name in ("similarity", "score"):
        values = [[item[name] for item in items] for items in (found, exact)]
        np.testing.assert_allclose(*values, atol=1e-6)


def answered_by(champion, limits):
    champion.look()
    assert champion.problem is None
    status, body = call(create_app(champion, limits), "POST", "/recommend", json=ONE)
    return status, body["answers"][0]["items"]


def test_five_thousand_events_are_answered_like_the_newest(ask):
    cfg = load_config()
    # 5,000 distinct events of few items, so that what is left out is the same for both.
    ids = [f"id{3 + i % 5}" for i in range(5000)]
    times = [NOW - 600 * (5000 - i) for i in range(5000)]
    kept = cfg.model.max_history
    sessions = [str(i // 7) for i in range(5000)]
    everything = changed(item_ids=ids, timestamps=times, actions=None, session_ids=sessions)
    newest = changed(
        item_ids=ids[-kept:], timestamps=times[-kept:], actions=None, session_ids=sessions[-kept:]
    )
    assert ask(everything) == ask(newest)


def test_order_and_duplicates_of_events_do_not_matter(ask):
    tidy = changed(
        item_ids=["id3", "id4", "id5"], timestamps=[NOW - 9, NOW - 8, NOW - 7], actions=None
    )
    untidy = changed(
        item_ids=["id5", "id3", "id4", "id3"],
        timestamps=[NOW - 7, NOW - 9, NOW - 8, NOW - 9],
        actions=None,
    )
    assert ask(untidy) == ask(tidy)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "requests: Field required"),
        ({"requests": []}, 422, "at least 1 item"),
        ({"requests": [HISTORY]}, 422, "request 0 has no request time: the model weighs"),
        (changed(request_time=NOW - 150), 422, "event 1 (item id4) has time 1099999900, after"),
        (changed(request_time=NOW * 1000), 422, "expected seconds since 1970 (UTC), not milli"),
        (changed(request_time="noon"), 422, "valid integer, found 'noon'"),
        (changed(request_time=2**70), 422, "expected seconds"),
        (changed(timestamps=[1]), 422, "2 item_ids but 1 timestamps; expected one for each"),
        (changed(timestamps=[1, -2]), 422, "event 1 (item id4) has time -2"),
        (changed(timestamps=[1.5, 2]), 422, "requests.0.timestamps.0: Input should be a valid int"),
        (changed(timestamps=[True, 2]), 422, "valid integer, found True"),
        (changed(item_ids=[None, "a"]), 422, "requests.0.item_ids.0: Input should be a valid str"),
        (changed(actions=["5"]), 422, "2 item_ids but 1 actions"),
        (changed(items=["a"]), 422, "requests.0.items: Extra inputs are not permitted"),
        ({**ONE, "k": 0}, 422, "greater than or equal to 1, found 0"),
        ({**ONE, "k": 10**30}, 422, "expected 1 to 100 (serve.max_k)"),
        ({**ONE, "allow": ["nowhere"]}, 422, "none of the 1 item ids to allow"),
        ({"requests": [{"request_time": NOW}] * 257}, 413, "at most 256 (serve.max_requests)"),
        (
            changed(item_ids=["a"] * 10_001, timestamps=[1] * 10_001),
            413,
            "has 10001 events, expected at most 10000 (serve.max_events)",
        ),
    ],
)
def test_wrong_input_is_answered_with_what_was_expected(ask, body, status, message):
    found, answer = ask(body)
    assert found == status
    assert message in answer["detail"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 422, "the body is not JSON at character 1: Expecting property name"),
        (b"", 422, "body: Field required"),
        (b"\xff", 422, "the body is not JSON in UTF-8: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 2000, 422, "the body is not JSON in UTF-8: lists or objects are nested too deep"),
        (b'{"k": ' + b"9" * 9000 + b"}", 422, "not JSON in UTF-8: Exceeds the limit (4300 digits)"),
        (b'{"requests": ' + b"[" * 500 + b"]" * 500 + b"}", 422, "found a list of 1"),
        (b'{"requests": [{"request_time": NaN}]}', 422, "valid integer, found nan"),
        (b'{"requests": [{"request_time": 1, "item_ids": ["\\ud800"], "timestamps": [2]}]}', 422,
         "event 0 (item \ud800)"),
        (b'{"requests": [' + b" " * 2**24 + b"]}", 413, "larger than 16 MiB (serve.max_body_mb)"),
    ],
)  # fmt: skip
def test_bodies_that_are_hardly_json(champion, content, status, message):
    app = create_app(champion, load_config().serve)
    json_body = {"content-type": "application/json"}
    found, answer = call(app, "POST", "/recommend", content=content, headers=json_body)
    assert found == status
    assert message in answer["detail"]


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_a_body_that_does_not_say_it_is_json_is_answered_with_what_to_send(champion, headers):
    app = create_app(champion, load_config().serve)
    content = json.dumps(ONE).encode()
    status, answer = call(app, "POST", "/recommend", content=content, headers=headers)
    assert status == 422
    assert "send Content-Type: application/json" in answer["detail"]


def test_titles_are_searched_by_any_part_and_ids_come_first(champion):
    app = create_app(champion, load_config().serve)
    found = call(app, "GET", "/items", params={"q": "TITLE 2"})[1]
    assert [item["item_id"] for item in found][:2] == ["id2", "id20"]
    assert call(app, "GET", "/items", params={"q": "id31"})[1][0]["title"] == "Title 31"


def test_the_page_needs_nothing_from_elsewhere(champion):
    app = create_app(champion, load_config().serve)

    async def fetch():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/")

    page = asyncio.run(fetch()).text
    assert "Ask the champion" in page
    assert "://" not in page and "src=" not in page
    paths = set(call(app, "GET", "/openapi.json")[1]["paths"])
    assert paths == {"/recommend", "/items", "/health", "/ready"}


def test_served_scores_equal_offline_scores(ask, inside):
    """Every user's last event through HTTP against the scorer on the log, as `evaluate` uses it."""
    log = EventLog.open(Path("artifacts/sessions/arrays"))
    cfg, user = load_config(), np.arange(log.meta.num_users)
    end = log.user_offsets[1:] - 1
    request_time = np.asarray(log.timestamp[end])
    asked = histories(log, user, end, request_time, cfg.model.max_history)
    scorer = Scorer.load(Path("artifacts/finetune"))
    similarity = scorer.retrieve(asked)
    every = np.tile(np.arange(2, log.meta.num_items), len(user))
    count = log.meta.num_items - 2
    score = scorer.rank(asked, np.arange(len(user) + 1) * count, every).reshape(len(user), count)
    rows = [np.arange(a, b) for a, b in zip(log.user_offsets[:-1], end, strict=True)]
    requests = [
        {
            "request_time": int(request_time[u]),
            # The ids of the test's own table: item 2 is "id2"; actions 1 and 2 are "1" and "5".
            "item_ids": [f"id{i}" for i in log.item[rows[u]]],
            "timestamps": log.timestamp[rows[u]].tolist(),
            "actions": [{1: "1", 2: "5"}[int(a)] for a in log.action[rows[u]]],
            # An exact duplicate would count once: the action of this log repeats with the item.
        }
        for u in user
    ]
    whole = [u for u in user if len(set(zip(*columns(requests[u]), strict=True))) == len(rows[u])]
    assert len(whole) > 20
    status, body = ask({"requests": [requests[u] for u in whole], "k": 30})
    assert status == 200
    for u, answer in zip(whole, body["answers"], strict=True):
        ids = np.array([int(item["item_id"][2:]) for item in answer["items"]])
        assert set(ids) == set(range(2, log.meta.num_items)) - set(log.item[rows[u]].tolist())
        served = np.array([[item["score"], item["similarity"]] for item in answer["items"]])
        np.testing.assert_allclose(served[:, 0], score[u, ids - 2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(served[:, 1], similarity[u, ids], rtol=0, atol=1e-6)


def columns(request):
    return request["item_ids"], request["timestamps"], request["actions"]


NO_PICKLE = """
import json, pickle, sys, _pickle
import mlflow, pandas, torch  # what they do when they are imported is not the version's doing

def refuse(*_, **__):
    raise AssertionError("something was unpickled")

def audit(event, arguments):
    if event == "pickle.find_class":
        refuse()

sys.addaudithook(audit)
class Refused:  # a class, because others derive from Unpickler
    __init__ = refuse

for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Refused
pickle._load = pickle._loads = refuse
pickle._Unpickler = Refused

from hpgr.config import load_config
from hpgr.serving.champion import load_champion
from hpgr.serving.request import Request

(answer,) = load_champion(load_config()).recommender.recommend([Request(9, ["id3"], [5])], k=2)
model = mlflow.pyfunc.load_model("models:/hpgr@champion")
frame = pandas.DataFrame([{"request_time": 9, "item_ids": ["id3"], "timestamps": [5]}])
served = model.predict(frame, {"k": 2}).item_id.tolist()
print(json.dumps([[i.item_id for i in answer.items], served]))
try:
    pickle.loads(b"N.")
except AssertionError:
    print("forbidden")
"""


def test_a_version_loads_and_answers_with_pickling_forbidden(inside):
    done = subprocess.run(
        [PYTHON, "-c", NO_PICKLE],
        env=environment(inside),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, forbidden = done.stdout.splitlines()[-2:]
    core, served = json.loads(answers)
    assert core == served and len(core) == 2
    assert forbidden == "forbidden"
