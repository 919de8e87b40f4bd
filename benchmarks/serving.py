"""The recommender under load: latencies and requests a second of `hpgr serve`'s application.

    python benchmarks/serving.py [WORKSPACE] [--quick] [--out benchmarks/results/serving.json]

Serves the trained model of a workspace (the current folder) in a process of its own, and asks it
from 1, 8 and 64 connections at once, each with the next request when the last answer is there: the
newest 200 events of users of the log, 10 items back; first with a worker for each core, then with
one (`one_worker_*`). Beside it stands the network alone, one reading of one such history and of
eight together. Server and clients share this machine's cores.
The last line is a JSON object of the figures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads OpenMP

import numpy as np
import torch
from fastapi import FastAPI

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.results_file import write_measured  # noqa: E402
from hpgr.config import Serve, load_config  # noqa: E402
from hpgr.data.histories import Histories, histories  # noqa: E402
from hpgr.data.log import EventLog  # noqa: E402
from hpgr.registry.bundle import write_bundle  # noqa: E402
from hpgr.serving.champion import Champion, Served  # noqa: E402
from hpgr.serving.listen import bind, run  # noqa: E402
from hpgr.serving.recommender import Recommender, load_bundle  # noqa: E402
from hpgr.serving.server import create_app  # noqa: E402
from hpgr.workspace import Workspace  # noqa: E402

EVENTS, ITEMS, USERS = 200, 10, 256
CLIENTS = (1, 8, 64)
WARM_UP = 5  # requests of each client that are not counted


def application(bundle: Path, limits: Serve) -> FastAPI:
    """Around a champion that is there from the start and never looked up."""
    torch.set_num_threads(1)
    champion = Champion("hpgr", lambda: None)  # type: ignore[arg-type, return-value]
    champion.served = Served(load_bundle(bundle, "the model", "train it"), "hpgr", 1, "", 0.0, 0.0)
    return create_app(champion, limits)


def run_server(bundle: Path, port: int, workers: int) -> None:
    """Serve until killed."""
    params = load_config(ROOT / "params.yaml")
    limits = params.serve.model_copy(update={"workers": workers})
    run(partial(application, bundle, limits), limits, bind("127.0.0.1", port))


def longest_histories(log: EventLog) -> Histories:
    """The newest EVENTS events of the USERS users that have most."""
    count = np.diff(log.user_offsets)
    users = np.sort(np.argsort(-count, kind="stable")[:USERS])
    end = log.user_offsets[users + 1]
    return histories(log, users, end, log.timestamp[end - 1] + 60, EVENTS)


def bodies(asked: Histories, recommender: Recommender) -> list[bytes]:
    """The requests as they travel."""
    name = {index: action for action, index in recommender.actions.items()}
    found = []
    for query in range(len(asked)):
        one = asked.take(slice(query, query + 1))
        events = {
            "item_ids": [recommender.names[i][0] for i in one.item.tolist()],
            "timestamps": one.timestamp.tolist(),
            "actions": [name.get(a) for a in one.action.tolist()],
        }
        request = {"request_time": int(one.request_time[0]), **events}
        found.append(json.dumps({"requests": [request], "k": ITEMS}).encode())
    return found


def ask(port: int, asked: list[bytes], clients: int, requests: int) -> dict[str, float]:
    """Milliseconds of an answer, median and 99th percentile, and answers a second."""
    ready, times = threading.Barrier(clients + 1), np.zeros((clients, requests))

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for turn in range(-WARM_UP, requests):
            if turn == 0:
                ready.wait()
            began = time.perf_counter()
            body = asked[(number * 7 + turn) % len(asked)]
            connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise SystemExit(f"expected an answer, got {answer.status}: {text[:300]!r}")
            if turn >= 0:
                times[number, turn] = time.perf_counter() - began
        connection.close()

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - began
    low, high = np.percentile(times, (50, 99)) * 1000
    return {"p50_ms": low, "p99_ms": high, "rps": times.size / spent}


def reading(recommender: Recommender, asked: Histories, queries: int, rounds: int) -> float:
    """Milliseconds of CPU of a reading of so many histories, each, the least of `rounds`."""
    part, spent = asked.take(slice(0, queries)), []
    for _ in range(rounds):
        began = time.thread_time()
        recommender.scorer.read(part).retrieve()
        spent.append(time.thread_time() - began)
    return 1000 * min(spent) / queries


def measure(workspace: Workspace, bundle: Path, *, quick: bool) -> dict[str, float]:
    """All figures of a trained workspace."""
    write_bundle(load_config(workspace.params), bundle, workspace)
    recommender = load_bundle(bundle, "the model", "train it")
    asked = longest_histories(EventLog.open(workspace.arrays))
    figures = {
        f"network_ms_of_{n}": reading(recommender, asked, n, 5 if quick else 30) for n in (1, 8)
    }
    for workers, prefix in ((os.cpu_count() or 1, ""), (1, "one_worker_")):
        for clients, found in under_load(bundle, recommender, asked, workers, quick=quick):
            figures |= {f"{prefix}{name}_{clients}": value for name, value in found.items()}
    return {name: round(value, 2) for name, value in figures.items()}


def under_load(
    bundle: Path, recommender: Recommender, asked: Histories, workers: int, *, quick: bool
) -> Iterator[tuple[int, dict[str, float]]]:
    """Numbers of clients, and what `ask` finds with so many."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(bundle), "--serve", str(port), str(workers)]
    server = subprocess.Popen(command)
    try:
        wait_for(port, server)
        for clients in CLIENTS:
            requests = (160 if quick else 1600) // clients
            yield clients, ask(port, bodies(asked, recommender), clients, requests)
    finally:
        server.terminate()
        server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server listens."""
    while server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server ended before it listened")


def main() -> None:
    """Measure one workspace, or be the server of such a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", nargs="?", type=Path, default=Path())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--serve", type=int, nargs=2, metavar=("PORT", "WORKERS"), help="serve the bundle WORKSPACE"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.serve:
        run_server(asked.workspace, *asked.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Workspace(asked.workspace), Path(folder) / "bundle", quick=asked.quick)
    if asked.out:
        write_measured(asked.out, "serving.py", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
