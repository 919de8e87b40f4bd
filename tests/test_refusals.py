"""A refusal of `hpgr serve` shows little of what was sent, whatever part of it is a megabyte."""

import asyncio
import base64
import hashlib
import json

import httpx
import mlflow
import pytest
from serving_project import NOW

from hpgr.config import load_config
from hpgr.registry.tracking import connect
from hpgr.runtime import UserError
from hpgr.serving.champion import Champion
from hpgr.serving.server import create_app
from hpgr.serving.typed_request import find_items, seconds
from hpgr.terminal import SHOWN_CHARACTERS, short, shown

HUGE = "x" * 10**6
LONG = "x" * 60_000  # in an address, of which uvicorn reads 64 KiB
DIGITS = int("9" * 4000)
FEW = 2000  # characters; a refusal may name several faults


@pytest.fixture(scope="module")
def app(registered_project):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(registered_project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        champion = Champion("hpgr", connect)
        champion.look()
        yield create_app(champion, load_config().serve)
    mlflow.set_tracking_uri(None)


def send(app, method, path, **more):
    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    return asyncio.run(go())


def asked(**columns):
    event = {"item_ids": ["id3"], "timestamps": [NOW - 5]}
    return {"requests": [{"request_time": NOW, **event, **columns}]}


@pytest.mark.parametrize(
    "body",
    [
        HUGE,
        [HUGE],
        {HUGE: 1},
        {f"{n}{HUGE}": 1 for n in range(3)},
        {"requests": HUGE},
        {"requests": [HUGE]},
        asked(**{HUGE: 1}),
        asked(request_time=HUGE),
        asked(request_time=DIGITS),
        asked(request_time=-DIGITS),
        asked(timestamps=[HUGE]),
        asked(timestamps=[DIGITS]),
        asked(timestamps=[-DIGITS]),
        asked(item_ids=[HUGE], timestamps=[NOW + 1]),
        asked(item_ids=[HUGE], timestamps=[-1]),
        asked(item_ids=["\ud800" * 10**5], timestamps=[-1]),
        asked(item_ids=[{HUGE: HUGE}]),
        asked(item_ids=[[HUGE]]),
        asked(actions=[{"a": HUGE}]),
        asked(session_ids=HUGE),
        {**asked(), "k": HUGE},
        {**asked(), "k": DIGITS},
        {**asked(), "k": -DIGITS},
        {**asked(), "allow": [HUGE]},
        {**asked(), "allow": HUGE},
        {**asked(), "deny": [[HUGE]]},
    ],
)
def test_of_a_body(app, body):
    headers = {"content-type": "application/json"}
    reply = send(app, "POST", "/recommend", content=json.dumps(body), headers=headers)
    assert reply.status_code == 422
    assert reply.json()["detail"]
    assert len(reply.content) < FEW


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", f"/{LONG}", {}),
        ("GET", f"/recommend/?{LONG}", {}),
        ("GET", f"/items/?q={LONG}", {}),
        ("PUT", "/recommend", {"content": HUGE}),
        ("GET", f"/items?{LONG}=1", {}),
        ("GET", f"/items?q={LONG}", {}),
        ("POST", "/recommend", {"content": HUGE, "headers": {"content-type": HUGE}}),
        ("POST", "/recommend", {"content": HUGE, "headers": {"content-type": "application/json"}}),
        ("POST", "/recommend", {"content": '"' + HUGE, "headers": {"content-type": "text/json"}}),
        ("GET", "/", {"headers": {"host": HUGE}}),
        ("GET", "/", {"headers": {"origin": HUGE}}),
    ],
)
def test_of_an_address_a_header_or_bytes(app, method, path, more):
    reply = send(app, method, path, **more)
    assert reply.status_code in (200, 400, 403, 404, 405, 422)  # 200: no title holds it
    assert len(reply.content) < FEW
    assert sum(len(value) for value in reply.headers.values()) < FEW


def test_of_the_registry(app):
    """The message of MLflow about an unreadable file may be long as well."""

    def fails():
        raise UserError(HUGE)

    champion = Champion("hpgr", fails)
    champion.look()
    for path in ("/ready", "/items?q=a"):
        reply = send(create_app(champion, load_config().serve), "GET", path)
        assert reply.status_code == 503
        assert len(reply.content) < 2 * FEW


@pytest.mark.parametrize(
    "refused",
    [
        lambda: find_items(HUGE, {"1": "Title"}),
        lambda: find_items(HUGE, {"1": HUGE, "2": HUGE}),
        lambda: find_items(HUGE[:-1], {str(n): HUGE for n in range(2)}),
        lambda: seconds(HUGE, where="--at"),
        lambda: seconds("9" * 4000, where="--at"),
    ],
)
def test_of_a_command(refused):
    with pytest.raises(UserError) as error:
        refused()
    assert len(str(error.value)) < FEW


@pytest.mark.parametrize("value", ["a", "", "a'b", 5, -1, None, True, 1.5, "x" * SHOWN_CHARACTERS])
def test_what_is_short_is_shown_as_it_is(value):
    assert shown("a") == "'a'"
    assert short(str(value)) == str(value)
    assert len(shown(value)) <= SHOWN_CHARACTERS + 3


def test_nothing_redirects_with_the_callers_host(app):
    for path in ("/recommend/", "/items/", "/ready/", "/health/"):
        reply = send(app, "GET", path)
        assert reply.status_code == 404
        assert "location" not in reply.headers


def test_the_page_runs_its_own_script_alone(app):
    reply = send(app, "GET", "/")
    policy = dict(
        part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        text = reply.text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert " on" not in json.dumps(reply.text.split("<script>")[0])  # no handler in the markup
