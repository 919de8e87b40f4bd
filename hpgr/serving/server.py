"""The champion behind HTTP, and a page on which a person asks it; `listen.py` runs it.

    POST /recommend   histories and a time in, items and their anchors out (schema.py)
    GET /             the page; GET /items?q=... is its title search
    GET /ready        which version answers; 503 while there is none
    GET /health       the process lives
    GET /openapi.json the schema

A promotion or roll-back in the registry is followed without a restart. Wrong input is a
4xx with one message. There is no authentication: a loopback address, or a proxy before it; pages of
other sites are refused (guard.py), and callers who keep the server waiting are cut (protocol.py).
Reads the registry. Writes nothing.
"""

# Annotations are not put off in this file: FastAPI reads that of `recommend`, which names a
# function inside another one.

import base64
import hashlib
import json
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from pydantic import BeforeValidator
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from hpgr.config import Serve
from hpgr.runtime import UserError
from hpgr.serving.champion import Champion, Served
from hpgr.serving.guard import Guard
from hpgr.serving.schema import Answers, ModelName, Question, Ready, Refusal, Title, explain
from hpgr.templates import rendered
from hpgr.terminal import short, shown

PAGE = Path(__file__).parent / "page.html.j2"
SHOWN_TITLES = 20
SHOWN_CHARACTERS = 2000  # of a refusal

RESPONSES: dict[int | str, dict[str, Any]] = {
    413: {"model": Refusal, "description": "more than serve.max_* allows"},
    422: {"model": Refusal, "description": "wrong input; the message says what was expected"},
    503: {"model": Refusal, "description": "no model is loaded yet; the message says why"},
}


def create_app(
    champion: Champion, limits: Serve, lifespan: Lifespan[FastAPI] | None = None
) -> FastAPI:
    """The application around a champion that another thread keeps up to date."""
    app = FastAPI(
        title="HPGR",
        description="Recommendations for a history and a time.",
        # Swagger's and ReDoc's pages load their scripts from the web.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the caller's Host
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, max_bytes=int(limits.max_body_mb * 2**20))
    app.add_middleware(Guard, hosts=[limits.host, *limits.allowed_hosts])  # the outermost
    for refused in (400, RequestValidationError, UserError):
        app.add_exception_handler(refused, _refuse)
    page = rendered(PAGE, {}, k=limits.k, max_k=limits.max_k)
    policy = _policy(page)

    def served() -> Served:
        model = champion.served  # read once: the watch may put another one there
        if model is None:
            raise HTTPException(503, f"no model is loaded yet: {_cut(champion.problem)}")
        return model

    sized = BeforeValidator(partial(check_size, limits=limits))

    # Plain functions run in worker threads; those that wait at the same time share a pass.
    @app.post("/recommend", responses=RESPONSES, response_model=Answers)
    def recommend(question: Annotated[Question, sized]) -> Response:
        """The best items for each request, and the history items that placed them."""
        model = served()
        answers = model.recommender.recommend(
            [asked.request() for asked in question.requests],
            k=question.k or limits.k,
            allow=question.allow,
            deny=question.deny,
            like_weight=question.like_weight,
        )
        found = Answers(model=ModelName(name=model.name, version=model.version), answers=answers)
        # Written at once: FastAPI would check and copy what was just made.
        return Response(found.model_dump_json(), media_type="application/json")

    @app.get("/items", responses={n: RESPONSES[n] for n in (422, 503)})
    def items(q: Annotated[str, Query(description="part of a title, or an id")]) -> list[Title]:
        """The first items of the catalogue whose title holds `q`, or whose id it is."""
        names = served().recommender.names.values()
        wanted = q.strip().casefold()
        found = [(i, t) for i, t in names if wanted in t.casefold() or wanted == i.casefold()]

        def place(item: tuple[str, str]) -> tuple[bool, bool, int]:
            """The exact id first, then titles that begin with the text, then short titles."""
            item_id, title = item
            return item_id != q.strip(), not title.casefold().startswith(wanted), len(title)

        best = sorted(found, key=place)[:SHOWN_TITLES]
        return [Title(item_id=item_id, title=title) for item_id, title in best]

    @app.get("/health")
    def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: RESPONSES[503]})
    def ready() -> Ready:
        """The version that answers, or 503 with the reason why there is none."""
        model = served()
        return Ready(
            model=ModelName(name=model.name, version=model.version),
            registered_at=_iso(model.registered_at),
            age_s=round(time.time() - model.registered_at, 3),
            loaded_at=_iso(model.loaded_at),
            problem=champion.problem and _cut(champion.problem),
        )

    @app.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return app


def check_size(body: Any, limits: Serve) -> Any:
    """Refuse what is larger than the server is set to answer, before anything is made of it.

    Return `body` as posted, of any form; it is bytes where it did not come as JSON.

    Raises:
        HTTPException: 413, too many requests or events.
        UserError: too large a `k`, or no JSON at all.
    """
    if isinstance(body, bytes):
        raise UserError("the body did not come as JSON: send Content-Type: application/json")
    if not isinstance(body, dict):
        return body
    requests, k = body.get("requests"), body.get("k")
    if isinstance(requests, list):
        if len(requests) > limits.max_requests:
            raise HTTPException(
                413,
                f"{len(requests)} requests, expected at most {limits.max_requests} "
                "(serve.max_requests): send them in several calls",
            )
        for number, asked in enumerate(requests):
            items = asked.get("item_ids") if isinstance(asked, dict) else None
            if isinstance(items, list) and len(items) > limits.max_events:
                raise HTTPException(
                    413,
                    f"request {number} has {len(items)} events, expected at most "
                    f"{limits.max_events} (serve.max_events): send the newest ones",
                )
    if isinstance(k, int) and k > limits.max_k:
        raise UserError(f"k is {shown(k)}, expected 1 to {limits.max_k} (serve.max_k)")
    return body


class BodyLimit:
    """ASGI middleware that ends a request whose body grows beyond `max_bytes` with a 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what arrives; also where no header gives its length."""
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.max_bytes:
                raise HTTPException(
                    413,
                    f"the body is larger than {self.max_bytes / 2**20:g} MiB (serve.max_body_mb): "
                    "send fewer requests or shorter histories in a call",
                )
            return message

        await self.app(scope, counted, send)


def _refuse(_: HttpRequest, error: Exception) -> Response:
    """Refuse wrong input with a 422 of one message."""
    if isinstance(error, RequestValidationError):
        message = explain(list(error.errors()))
    elif isinstance(error, UserError):
        message = str(error)
    else:  # Python's JSON cannot read the body; FastAPI calls it a 400 and says no more
        cause = error.__cause__
        message = str(cause).split(";")[0]  # of a number too long, Python offers a setting
        if isinstance(cause, RecursionError):
            message = "lists or objects are nested too deep"
        message = f"the body is not JSON in UTF-8: {message}"
    # ASCII: a caller's lone surrogate, echoed in the message, has no UTF-8 form.
    body = json.dumps({"detail": _cut(message)}, ensure_ascii=True)
    return Response(body, status_code=422, media_type="application/json")


def _policy(page: str) -> str:
    """The page's own script and style run, and nothing else: no other source, in no frame."""
    allowed = {}
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[tag] = f"{tag}-src 'sha256-{digest}'"
    rest = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; connect-src 'self'; {'; '.join(allowed.values())}; {rest}"


def _cut(message: str | None) -> str:
    return short(str(message), SHOWN_CHARACTERS)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
