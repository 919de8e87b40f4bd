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
from hpgr.evaluation.model_protocols import REASONS
from hpgr.failure import explained
from hpgr.registry.bundle import write_bundle
from hpgr.registry.mlflow_faults import answered
from hpgr.registry.summary import headline, terminal_tables, verdict
from hpgr.registry.tracking import connect
from hpgr.registry.versions import alias_of
from hpgr.runtime import UserError, read_json
from hpgr.serving.champion import load_champion
from hpgr.serving.recommender import Anchor, Answer, Recommender, load_bundle
from hpgr.serving.request import Request
from hpgr.serving.typed_request import of_user, typed
from hpgr.terminal import cell
from hpgr.workspace import HERE, Workspace

SOURCES = ("champion", "artifacts")
SHOWN_EVENTS = 5  # newest events printed above an answer
SHOWN_USERS = 2  # of the log, in `hpgr result`
SHOWN_ITEMS = 5


@explained("recommend", Path(tempfile.gettempdir()))  # all that it writes
def recommend(
    cfg: Config,
    *,
    user: str | None,
    history: str | None,
    at: str | None,
    k: int,
    source: str,
    like_weight: float | None = None,
    workspace: Workspace = HERE,
) -> None:
    """Print the `k` best items for a user of the log or for a typed history.

    Raises:
        UserError: neither or both are given; the user, an item or the model is unknown;
            `like_weight` is refused by `Recommender.recommend`.
    """
    if (user is None) == (history is None):
        raise UserError("say who asks: either --user ID or --history 'title or id, ...'")
    if source not in SOURCES:
        raise UserError(f"--source {source!r}: expected {' or '.join(SOURCES)}")
    if source == "champion":
        recommender = load_champion(cfg, workspace).recommender
    else:
        recommender = from_artifacts(cfg, workspace)
    if history is not None:
        request, title = typed(history, at, recommender), "this history"
    else:
        request, title = of_user(str(user), at, workspace), f"user {user}"
    show(recommender, request, k=k, title=title, like_weight=like_weight)


@explained("result", Path(tempfile.gettempdir()))
@answered()
def result(cfg: Config, workspace: Workspace = HERE) -> None:
    """Print the tables of the last evaluation, some recommendations and one line of JSON.

    Raises:
        UserError: nothing was evaluated or registered yet.
    """
    source = workspace.registered
    if not source.is_file():
        raise UserError(f"{source} not found: run `make run`, or `hpgr register` after `dvc repro`")
    registered = read_json(source)
    console = Console()
    for table in terminal_tables(workspace):
        console.print(table)
    beaten_by, sentence = verdict(workspace)
    if sentence:
        console.print(sentence, style="bold red" if beaten_by else None, highlight=False)
    recommender = from_artifacts(cfg, workspace)
    users = pq.read_table(workspace.sessions / "users.parquet")["user_id"]
    for user in users.slice(0, SHOWN_USERS).to_pylist():
        show(recommender, of_user(user, None, workspace), k=SHOWN_ITEMS, title=f"user {user}")
    name, version = registered["name"], registered["version"]
    line = {
        "dataset": cfg.data.path.name,
        "metrics": headline(workspace),
        "beaten_by": beaten_by,
        "model": name,
        "version": version,
        "alias": alias_of(connect(workspace), name, version),  # now, not then
    }
    print(json.dumps(line), flush=True)


def from_artifacts(cfg: Config, workspace: Workspace = HERE) -> Recommender:
    """The recommender of the last run's artifacts."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_bundle(cfg, Path(scratch) / "bundle", workspace)
        return load_bundle(bundle, "the last run's model", "`dvc repro` brings its files back")


def show(
    recommender: Recommender,
    request: Request,
    *,
    k: int,
    title: str,
    like_weight: float | None = None,
) -> None:
    """Print the newest events of the request, the answer and its anchors."""
    (answer,) = recommender.recommend([request], k=k, like_weight=like_weight)
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
    if answer.anchors:
        console.print(cell(f"anchors: {_shares(answer.anchors[:SHOWN_EVENTS])}"))


def _table(answer: Answer) -> Table:
    table = Table()
    words = ("title", "id", "anchors")
    for column in ("", "title", "id", "score", "similarity", "anchors"):
        table.add_column(column, justify="left" if column in words else "right")
    for rank, item in enumerate(answer.items, start=1):
        numbers = ["–" if n is None else f"{n:.3f}" for n in (item.score, item.similarity)]
        anchors = _shares(item.anchors[:REASONS])
        table.add_row(str(rank), cell(item.title), cell(item.item_id), *numbers, cell(anchors))
    return table


def _shares(anchors: list[Anchor]) -> str:
    return "; ".join(f"{anchor.title} ({anchor.weight:.0%})" for anchor in anchors)
