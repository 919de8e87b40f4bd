"""Anything may be posted to `hpgr serve`: it is answered or refused, never a server's error."""

import asyncio
import json
from contextlib import contextmanager

import httpx
import mlflow
import pytest
import schemathesis
from fastapi.exceptions import RequestValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from serving_fuzz import bodies, values

from hpgr.config import load_config
from hpgr.registry.tracking import connect
from hpgr.serving.champion import Champion
from hpgr.serving.schema import SHOWN_PROBLEMS
from hpgr.serving.server import create_app

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def app(registered_project):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(registered_project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        champion = Champion("hpgr", connect)
        champion.look()
        assert champion.served is not None, champion.problem
        yield create_app(champion, load_config().serve)
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_the_schema_allows_and_forbids(app, mode):
    api = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [result.ok() for result in api.get_all_operations()]
    assert {operation.path for operation in operations} == set(api.raw_schema["paths"])
    tried = {operation.path: 0 for operation in operations}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path in ("/health", "/ready"):
            continue  # nothing can be wrong with them: they take nothing

        @settings(max_examples=40, **RELAXED)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            tried[case.operation.path] += 1
            reply = case.call()
            case.validate_response(reply, checks=[not_a_server_error, response_schema_conformance])

        check()
    assert tried["/recommend"] >= 40 and tried["/items"] >= 40


@contextmanager
def counted_messages():
    """Collects how many errors each failed validation made."""
    made, errors = [], RequestValidationError.__init__

    def init(self, found, **more):
        made.append(len(found))
        errors(self, found, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestValidationError, "__init__", init)
        yield made


def post(app, content):
    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"content-type": "application/json"}
            return await client.post("/recommend", content=content, headers=headers)

    return asyncio.run(go())


@settings(max_examples=300, **RELAXED)
@given(body=bodies() | values)
def test_requests_that_are_nearly_right(app, body):
    reply = post(app, json.dumps(body).encode())
    assert reply.status_code in (200, 422)
    answer = reply.json()
    if reply.status_code == 200:
        assert len(answer["answers"]) == len(body["requests"])
        for one in answer["answers"]:
            found = [item["item_id"] for item in one["items"]]
            assert len(set(found)) == len(found) <= (body.get("k") or 10)
            assert body.get("allow") is None or set(found) <= set(map(str, body["allow"]))
            assert not set(found) & set(map(str, body.get("deny") or []))
    else:
        assert answer["detail"]


@settings(max_examples=100, **RELAXED)
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0123456789nultruefalse').map(str.encode)
)
def test_bytes_that_are_no_request(app, content):
    assert post(app, content).status_code == 422


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"requests":[{"request_time":' + b"9" * 9000 + b"}]}", b"\xff"]
)
def test_bytes_that_break_parsers(app, content):
    reply = post(app, content)
    assert reply.status_code == 422
    assert reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"requests": [1] * 10**6}, 413, "1000000 requests, expected at most 256"),
        ({"requests": [{}] * 10**6}, 413, "1000000 requests, expected at most 256"),
        ({"requests": [{"item_ids": [[]] * 10**6}]}, 413, "1000000 events, expected at most 10000"),
        ({"requests": [{"timestamps": ["x"] * 10**6}]}, 422, "timestamps.0: Input should be a val"),
        ({"requests": [{"actions": [1.5] * 10**6}]}, 422, "actions.0: Input should be a valid str"),
        ({"requests": [{"session_ids": [{}] * 10**6}]}, 422, "found an object of 0 keys"),
        (
            {"requests": [{str(n): n for n in range(100_000)}]},
            422,
            "no other keys than request_time",
        ),
        ({str(n): n for n in range(100_000)}, 422, "no other keys than requests, k, allow, deny"),
        ({"requests": [{}], "allow": [None] * 10**6}, 422, "allow.0: Input should be a valid str"),
        ({"requests": [{}], "deny": [True] * 10**6}, 422, "found True"),
    ],
)
def test_a_million_mistakes_are_refused_at_once_and_in_few_words(app, body, status, message):
    """As few messages are made as are message: one for each mistake took ten seconds."""
    content = json.dumps(body).encode()
    with counted_messages() as made:
        reply = post(app, content)
    assert sum(made) <= 2 * SHOWN_PROBLEMS
    assert reply.status_code == status
    assert message in reply.json()["detail"]
    assert len(reply.content) < 1000
