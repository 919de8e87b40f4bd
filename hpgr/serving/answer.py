"""Answers on the terminal: `hpgr recommend` and `hpgr result`.

Reads the champion of the registry or the artifacts, and the sessionized log. Writes to stdout.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from hpgr.config import Config
from hpgr.failure import explained
from hpgr.registry.bundle import write_bundle
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.summary import headline, terminal_tables, verdict
from hpgr.registry.tracking import connect
from hpgr.registry.versions import alias_of
from hpgr.runtime import UserError, read_json
from hpgr.serving.champion import load_champion
from hpgr.serving.recommender import Answer, Driver, Recommender, load_told
from hpgr.serving.request import Request
from hpgr.serving.typed_request import SESSIONS, of_user, typed
from hpgr.terminal import cell
from hpgr.workspace import HERE

SOURCES = ("champion", "artifacts")
SHOWN_EVENTS = 5  # newest events printed above an answer
SHOWN_DRIVERS = 2  # of an item
SHOWN_USERS = 2  # of the log, in `hpgr result`
SHOWN_ITEMS = 5


@explained("recommend", Path(tempfile.gettempdir()))  # all that it writes
def recommend(
    cfg: Config, *, user: str | None, history: str | None, at: str | None, k: int, source: str
) -> None:
    """Print the `k` best items for a user of the log or for a typed history.

    Raises:
        UserError: neither or both are given; the user, an item or the model is unknown.
    """
    if (user is None) == (history is None):
        raise UserError("say who asks: either --user ID or --history 'title or id, ...'")
    if source not in SOURCES:
        raise UserError(f"--source {source!r}: expected {' or '.join(SOURCES)}")
    recommender = load_champion(cfg).recommender if source == "champion" else from_artifacts(cfg)
    request = typed(history, at, recommender) if history is not None else of_user(str(user), at)
    show(recommender, request, k=k, title=f"user {user}" if user is not None else "this history")


@explained("result", Path(tempfile.gettempdir()))
@answered()
def result(cfg: Config) -> None:
    """Print the tables of the last evaluation, some recommendations and one line of JSON.

    Raises:
        UserError: nothing was evaluated or registered yet.
    """
    source = HERE.artifacts / "registered.json"
    if not source.is_file():
        raise UserError(f"{source} not found: run `make run`, or `hpgr register` after `dvc repro`")
    registered = read_json(source)
    console = Console()
    for table in terminal_tables():
        console.print(table)
    beaten_by, sentence = verdict()
    if sentence:
        console.print(sentence, style="bold red" if beaten_by else None, highlight=False)
    recommender = from_artifacts(cfg)
    users = pq.read_table(SESSIONS / "users.parquet")["user_id"].slice(0, SHOWN_USERS).to_pylist()
    for user in users:
        show(recommender, of_user(user, None), k=SHOWN_ITEMS, title=f"user {user}")
    line = {
        "profile": cfg.profile,
        "dataset": cfg.data.path.name,
        "metrics": headline(),
        "beaten_by": beaten_by,
        "model": registered["name"],
        "version": registered["version"],
        "alias": alias_of(connect(), registered["name"], registered["version"]),  # now, not then
    }
    print(json.dumps(line), flush=True)


def from_artifacts(cfg: Config) -> Recommender:
    """The recommender of the last run's artifacts."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_bundle(cfg, Path(scratch) / "bundle")
        return load_told(bundle, "the last run's model", "`dvc repro` brings its files back")


def show(recommender: Recommender, request: Request, *, k: int, title: str) -> None:
    """Print the newest events of the request, the answer and what drove it."""
    (answer,) = recommender.recommend([request], k=k)
    console = Console()
    names = dict(recommender.names.values())
    recent = [names.get(i, i) for i in request.item_ids[-SHOWN_EVENTS:]]
    asked = datetime.fromtimestamp(int(request.request_time or 0), UTC)
    line = cell(
        f"{title}, {len(request.item_ids)} events, asking at {asked:%Y-%m-%d %H:%M} UTC; "
        f"last: {'; '.join(recent)}"
    )
    line.stylize("bold", 0, len(cell(title)))
    console.print()
    console.print(line)
    console.print(_table(answer))
    if answer.drivers:
        console.print(cell(f"found by: {_shares(answer.drivers[:SHOWN_EVENTS])}"))


def _table(answer: Answer) -> Table:
    table = Table()
    words = ("title", "id", "because of")
    for column in ("", "title", "id", "score", "similarity", "because of"):
        table.add_column(column, justify="left" if column in words else "right")
    for rank, item in enumerate(answer.items, start=1):
        numbers = ["–" if n is None else f"{n:.3f}" for n in (item.score, item.similarity)]
        because = _shares(item.drivers[:SHOWN_DRIVERS])
        table.add_row(str(rank), cell(item.title), cell(item.item_id), *numbers, cell(because))
    return table


def _shares(drivers: list[Driver]) -> str:
    return "; ".join(f"{driver.title} ({driver.weight:.0%})" for driver in drivers)
