"""The processes of `hpgr serve`: one address, and the application of server.py in each worker.

With one worker (`serve.workers`) that is this process. With more, uvicorn starts them, each with a
model of its own, and starts one anew that ends or hangs; one of them takes each connection. Reads
the registry. Writes nothing.
"""

from __future__ import annotations

import errno
import logging
import math
import multiprocessing
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from hpgr.config import Config, Serve
from hpgr.registry.tracking import connect
from hpgr.runtime import UserError, end_with_parent
from hpgr.serving.champion import Champion
from hpgr.serving.protocol import PunctualHTTP
from hpgr.serving.recommender import Recommender
from hpgr.serving.server import create_app
from hpgr.workspace import HERE, Workspace

HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
STOP_GRACE_S = 10  # for requests in flight when the server is asked to end


def serve(cfg: Config, workspace: Workspace = HERE) -> None:
    """Serve the champion until the process is asked to end.

    Raises:
        UserError: the address cannot be bound.
    """
    # A registry that is gone must be noticed between two looks, not after MLflow's many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, round(cfg.serve.reload_s))))
    listening = bind(cfg.serve.host, cfg.serve.port)
    print(f"http://{cfg.serve.host}:{cfg.serve.port}", flush=True)
    run(partial(worker, cfg.register_.model_name, cfg.serve, workspace), cfg.serve, listening)


def worker(name: str, limits: Serve, workspace: Workspace) -> FastAPI:
    """The application of one worker, whose champion follows the registry while it runs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    champion = Champion(name, partial(connect, workspace), partial(indexed, limits))

    @asynccontextmanager
    async def followed(_: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        looks = (limits.reload_s, stop)
        threading.Thread(target=champion.watch, args=looks, name="champion", daemon=True).start()
        yield
        stop.set()

    return create_app(champion, limits, lifespan=followed)


def indexed(limits: Serve, recommender: Recommender) -> None:
    """Give a recommender with a large catalogue an index, if `serve.index_items` says so.

    Raises:
        UserError: see `Recommender.use_index`.
    """
    if limits.index_items is not None and len(recommender.item) >= limits.index_items:
        recommender.use_index(limits.index_recall)


def run(make_app: partial[FastAPI], limits: Serve, listening: socket.socket) -> None:
    """Serve what `make_app` makes in each worker; another process gets it pickled."""
    count = limits.workers
    http = partial(
        PunctualHTTP,
        timeout_s=limits.receive_timeout_s,
        max_connections=math.ceil(limits.max_connections / count),
    )
    settings = uvicorn.Config(
        partial(_ending_with_parent, make_app),
        factory=True,
        http=http,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        headers=HEADERS,
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_GRACE_S,
        workers=count,
    )
    try:
        if count == 1:
            uvicorn.Server(settings).run(sockets=[listening])
        else:
            # Workers would wake each other's threads on the same cores.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
            Multiprocess(settings, sockets=[listening]).run()
    except KeyboardInterrupt:  # uvicorn has shut down and raises the signal again
        pass


def _ending_with_parent(make_app: partial[FastAPI]) -> FastAPI:
    if multiprocessing.parent_process() is not None:
        end_with_parent()
    return make_app()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; in use or not allowed is one clear message.

    Raises:
        UserError: it cannot; the message says how to fix it.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The system's usual setting for IPv6, which `create_server` drops by default.
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        # It also listens: two servers may bind one address, but only one may listen.
        listening = socket.create_server(address, family=family, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:  # a host such as a..b cannot even be asked for
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "another process listens there" if taken else str(error)
        raise UserError(
            f"cannot serve on {host}:{port}: {reason}. Stop that process, or change serve.port or "
            "serve.host in params.yaml."
        ) from error
    # asyncio sets it only where a socket names its protocol, which this one does not. Without it
    # the second part of an answer waits for the caller's delayed acknowledgement, 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
