"""The registered version behind MLflow's own scoring server, in process and as a real command."""

import asyncio
import json
import signal
import subprocess

import httpx
import mlflow
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_fuzz import bodies, values
from serving_project import LIKE_WEIGHT, PYTHON, environment, free_port
from waiting import until

from hpgr.config import load_config
from hpgr.serving.champion import load_champion
from hpgr.serving.request import Request

NOW = 1_100_000_000
ROW = {
    "request_time": NOW,
    "item_ids": ["id3", "id4"],
    "timestamps": [NOW - 200, NOW - 100],
    "actions": ["5", None],
}


@pytest.fixture
def inside(registered_project, monkeypatch):
    monkeypatch.chdir(registered_project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield registered_project
    mlflow.set_tracking_uri(None)


@pytest.fixture
def recommender(inside):
    return load_champion(load_config()).recommender


@pytest.fixture
def post(recommender):
    """POST to MLflow's application around the version: (status, body)."""
    from mlflow.pyfunc import scoring_server

    app = scoring_server.init(mlflow.pyfunc.load_model("models:/hpgr@champion"))

    def send(body):
        async def go():
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                # Python's JSON, which has NaN; a caller's may have it too.
                reply = await client.post(
                    "/invocations",
                    content=json.dumps(body).encode(),
                    headers={"content-type": "application/json"},
                )
                return reply.status_code, json.loads(reply.content, parse_constant=no_json)

        return asyncio.run(go())

    return send


def no_json(constant):
    raise AssertionError(f"{constant} is no JSON")


def rows(*given, **params):
    return {"dataframe_records": list(given), "params": params}


def without(name):
    return {column: value for column, value in ROW.items() if column != name}


def same(predictions, answers):
    """Return True if MLflow's rows are the recommender's answers."""
    expected = [
        (q, rank, item.item_id, item.title, item.score, item.similarity, answer.source)
        for q, answer in enumerate(answers)
        for rank, item in enumerate(answer.items, start=1)
    ]
    names = ("request", "rank", "item_id", "title", "score", "similarity", "source")
    found = [tuple(row[name] for name in names) for row in predictions]
    assert [row[:4] + row[6:] for row in found] == [row[:4] + row[6:] for row in expected]
    numbers = [np.array([row[4:6] for row in part], dtype=float) for part in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6)


def test_the_scoring_server_answers_like_the_core(post, recommender):
    newcomer = {"request_time": NOW, "item_ids": [], "timestamps": []}
    sessions = {**ROW, "session_ids": ["a", "b"]}
    status, body = post(rows(ROW, newcomer, sessions, k=4))
    assert status == 200
    asked = [
        Request(NOW, ROW["item_ids"], ROW["timestamps"], ROW["actions"]),
        Request(NOW, [], []),
        Request(NOW, ROW["item_ids"], ROW["timestamps"], ROW["actions"], ["a", "b"]),
    ]
    answers = recommender.recommend(asked, k=4)
    same(body["predictions"], answers)
    items = [item for answer in answers for item in answer.items]
    for row, item in zip(body["predictions"], items, strict=True):
        reported = [(anchor["item_id"], anchor["title"]) for anchor in row["anchors"]]
        assert reported == [(anchor.item_id, anchor.title) for anchor in item.anchors]
        assert sum(anchor["weight"] for anchor in row["anchors"]) == pytest.approx(
            1 if reported else 0
        )


@pytest.mark.parametrize("weight", [0, 0.5, 100.0])
def test_a_caller_may_ask_for_another_order(post, recommender, weight):
    status, body = post(rows(ROW, k=28, like_weight=weight))
    assert status == 200
    asked = Request(NOW, ROW["item_ids"], ROW["timestamps"], ROW["actions"])
    same(body["predictions"], recommender.recommend([asked], k=28, like_weight=weight))


def test_without_a_weight_the_order_is_the_versions_own(post):
    own = post(rows(ROW, k=28))
    assert own == post(rows(ROW, k=28, like_weight=None))
    assert own == post(rows(ROW, k=28, like_weight=LIKE_WEIGHT))
    assert own != post(rows(ROW, k=28, like_weight=100.0))


@pytest.mark.parametrize("form", ["dataframe_split", "inputs", "instances"])
def test_mlflows_other_forms_of_rows_are_answered_too(post, form):
    split = {"columns": list(ROW), "data": [list(ROW.values())]}
    body = {form: split if form == "dataframe_split" else [ROW], "params": {"k": 4}}
    assert post(body) == post(rows(ROW, k=4))


def test_without_k_ten_items_are_returned(post):
    assert len(post({"dataframe_records": [ROW]})[1]["predictions"]) == 10


def test_a_k_beyond_the_catalogue_returns_what_there_is(post):
    assert len(post(rows(ROW, k=10**12))[1]["predictions"]) == 28


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        (rows(without("request_time")), "request 0 has no request time: the model weighs"),
        (rows(ROW, without("request_time")), "request 1 has no request time"),
        (rows({**ROW, "request_time": float("nan")}), "request 0 has no request time"),
        (
            rows({**ROW, "request_time": 1.5}),
            "request 0: request_time: Input should be a valid int",
        ),
        (rows({**ROW, "request_time": "noon"}), "valid integer, found 'noon'"),
        (rows({**ROW, "request_time": 10**30}), "expected seconds since 1970"),
        (rows(without("item_ids")), "0 item_ids but 2 timestamps"),
        (rows(without("timestamps")), "2 item_ids but 0 timestamps"),
        (rows({**ROW, "timestamps": [1.5, 2]}), "timestamps.0: Input should be a valid integer"),
        (rows({**ROW, "timestamps": [float("nan"), 2]}), "timestamps.0: Input should be a valid"),
        (rows({**ROW, "timestamps": 7}), "timestamps: Input should be a valid list, found 7"),
        (rows({**ROW, "timestamps": [1, NOW + 1]}), "event 1 (item id4) has time"),
        (rows({**ROW, "item_ids": [None, "id4"]}), "item_ids.0: Input should be a valid string"),
        (rows({**ROW, "item_ids": [["id3"], ["id4"]]}), "item_ids.0: Input should be a valid str"),
        (rows(ROW, k=0), "k is 0, expected the number of items"),
        (rows(ROW, k=None), "k is null, expected the number of items"),
        (rows(ROW, like_weight=-1), "like_weight is -1.0, expected a number from 0"),
        (rows(ROW, like_weight=float("nan")), "like_weight is nan, expected a number from 0"),
        (rows(ROW, like_weight="x"), "Failed to validate type and shape for 'like_weight'"),
        (rows(ROW, k="many"), "Failed to validate type and shape for 'k'"),
        (rows(), "found no request, expected rows with the columns request_time, item_ids"),
        ({"inputs": "x"}, "found no request"),
        ({"dataframe_records": [1]}, "found no request"),
        ({"messages": [ROW]}, "found no request"),
    ],
)
def test_wrong_input_is_answered_with_what_was_expected(post, body, reported):
    status, answer = post(body)
    assert status == 400
    assert reported in answer["message"]
    assert "stack_trace" not in answer


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.one_of(
        st.builds(
            lambda b, k, w: rows(*b["requests"], k=k, like_weight=w), bodies(), values, values
        ),
        st.dictionaries(
            st.sampled_from(["dataframe_records", "dataframe_split", "inputs", "instances", "x"]),
            values,
            max_size=2,
        ),
    )
)
def test_no_posted_rows_make_it_fail(post, body):
    status, answer = post(body)
    assert status in (200, 400)
    if status == 400:
        assert "stack_trace" not in answer, answer


def test_mlflow_models_serve_answers_like_the_core(inside, recommender):
    port = free_port()
    process = subprocess.Popen(
        [PYTHON, "-m", "mlflow", "models", "serve", "--model-uri", "models:/hpgr@champion",
         "--env-manager", "local", "--port", str(port)],
        env={**environment(inside), "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        base = f"http://127.0.0.1:{port}"

        def alive():
            assert process.poll() is None, process.communicate()[0]
            try:
                return httpx.get(f"{base}/ping").status_code == 200
            except httpx.TransportError:
                return False

        until(alive, "mlflow models serve")
        reply = httpx.post(f"{base}/invocations", json=rows(ROW, k=5))
        assert reply.status_code == 200
        asked = Request(NOW, ROW["item_ids"], ROW["timestamps"], ROW["actions"])
        same(reply.json()["predictions"], recommender.recommend([asked], k=5))
        refused = httpx.post(f"{base}/invocations", json=rows(without("request_time")))
        assert refused.status_code == 400
        assert "request 0 has no request time" in refused.json()["message"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
