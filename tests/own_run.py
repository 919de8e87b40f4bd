"""The stages in this process, on a small log of one's own: from validated events to a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from params_text import params_of
from sample_log import write_validated

from hpgr.config import Config, resolve
from hpgr.data.sessionize import sessionize
from hpgr.evaluation.evaluate import evaluate
from hpgr.registry.bundle import write_bundle
from hpgr.serving.recommender import Recommender
from hpgr.serving.request import Request
from hpgr.training.finetune import finetune
from hpgr.training.pretrain import pretrain

START = 1_600_000_000


def config(**changes) -> Config:
    """Profile smoke of params.yaml with `section__key=value` changes."""
    raw = params_of("smoke")
    for name, value in changes.items():
        section, key = name.split("__")
        raw[section][key] = value
    return resolve(raw)


def write_log(users: dict[str, list[tuple]]) -> None:
    """Events of each user, ten minutes apart: item, action and, for all or none, session id."""
    rows = [
        (user, item, START + 10**5 * u + 600 * n, action, own[0] if own else None)
        for u, (user, events) in enumerate(users.items())
        for n, (item, action, *own) in enumerate(events)
    ]
    names = ("user_id", "item_id", "timestamp", "action", "session_id")
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    write_validated({**table, "row": list(range(len(rows)))})


def walks(num_users: int = 40, *, repeats: bool, seed: int = 0) -> dict[str, list]:
    """Users who walk along a ring of forty items; with `repeats` about half of it go back."""
    random = np.random.default_rng(seed)
    users = {}
    for u in range(num_users):
        place, events = int(random.integers(40)), []
        for _ in range(12):
            back = repeats and len(events) > 2 and random.random() < 0.5
            if back:
                item = events[int(random.integers(len(events)))][0]
            else:
                item, place = f"i{place % 40}", place + 1
            events.append((item, str(random.integers(1, 6))))
        users[f"u{u}"] = events
    return users


def train(cfg: Config) -> None:
    """Every stage behind validate."""
    for stage in (sessionize, pretrain, finetune, evaluate):
        stage(cfg)


def metrics() -> dict:
    """The content of metrics.json."""
    return json.loads(Path("artifacts/evaluation/metrics.json").read_text())


def served(cfg: Config, users: dict[str, list], k: int) -> list[list[str]]:
    """The answer of each user of `write_log` at the time of the last event, given all others."""
    if not Path("bundle").exists():
        write_bundle(cfg, Path("bundle"))
    model = Recommender.load(Path("bundle"), device="cpu")
    requests = []
    for u, events in enumerate(users.values()):
        time = [START + 10**5 * u + 600 * n for n in range(len(events))]
        items, actions, *own = map(list, zip(*events[:-1], strict=True))
        requests.append(Request(time[-1], items, time[:-1], actions, *own))
    answers = model.recommend(requests, k=k)
    ranked = read_ranked()
    assert all((item.score is not None) == ranked for a in answers for item in a.items)
    return [[item.item_id for item in answer.items] for answer in answers]


def read_ranked() -> bool:
    """Return True if the model has a ranking head."""
    return json.loads(Path("artifacts/finetune/config.json").read_text())["ranking"]


def session_meta() -> dict:
    """meta.json of the sessionized log."""
    return json.loads(Path("artifacts/sessions/arrays/meta.json").read_text())
