"""`finetune.predict: next_session`: targets of logs of baskets, whose items have no order."""

import numpy as np
from evaluation_log import random_log

from benchmarks import planted
from hpgr.data.batches import TrainingWindows
from hpgr.data.log import EventLog
from hpgr.training.validation import Validation

START = 1_600_000_000
INSIDE, PAUSE = (1400, 1797), (1805, 1852)  # seconds: in one bucket of time
GROUPS, PER_GROUP, SESSIONS = 8, 10, 6
SETTINGS = {
    **{"model.sessions": False},  # with it a network knows when a session has ended
    **{"model.dim": 16, "model.num_blocks": 1, "model.dropout": 0.0, "model.readout": False},
    **{"pretrain.steps": 0, "finetune.steps": 60, "finetune.validate_steps": 60},
    **{"finetune.learning_rate": 0.01, "finetune.ranking_weight": 0.0},
    **{"finetune.predict": "next_session", "evaluate.remove_history": False},
}


def later_items(log, row, last):
    """Items of the run of one session after that of `row`, up to `last`: a loop over rows."""
    rows = iter(range(row + 1, last + 1))
    start = next((r for r in rows if log.session[r] != log.session[row]), None)
    if start is None:
        return set()
    found = {int(log.item[start])}
    for r in range(start + 1, last + 1):
        if log.session[r] != log.session[start]:
            break
        found.add(int(log.item[r]))
    return found


def test_targets_are_all_items_of_the_session_after():
    log = random_log(0)
    sizes = {"max_history": 12, "batch_tokens": 60, "num_candidates": 0}
    data = TrainingWindows(log, **sizes, random_windows=False, seed=0, next_session=True)
    drawn: dict[int, set[int]] = {}
    allowed, without = {}, 0
    for epoch in range(30):
        for index, windows in enumerate(data.plan(epoch)):
            batch = data.batch(windows, epoch, index)
            place = 0
            for window in windows:
                last = data.end[window] - 1
                for row in range(last - data.length[window], last):
                    target = int(batch.target[place])
                    place += 1
                    if row not in allowed:
                        allowed[row] = later_items(log, row, last)
                    if allowed[row]:
                        assert target in allowed[row]
                        drawn.setdefault(row, set()).add(target)
                    else:
                        assert target == -1
                        without += 1
            assert place == len(batch.target) == len(batch.histories.item)
    assert without and max(map(len, allowed.values())) > 1
    assert all(drawn[row] == items for row, items in allowed.items() if 0 < len(items) <= 2)


def test_the_start_of_an_event_s_session_is_where_its_run_begins():
    log = random_log(1)
    user, start = log.user_of_event(), log.session_start()
    for row in range(log.meta.num_events):
        first = row
        while first and (user[first - 1], log.session[first - 1]) == (user[row], log.session[row]):
            first -= 1
        assert start[row] == first


def baskets() -> planted.Planted:
    """Users go through the groups of items in turn; a basket has some of a group, in any order."""
    random = np.random.default_rng(0)
    events = []
    for user in range(150):
        first, time = random.integers(GROUPS), START + user
        for session in range(SESSIONS):
            taken = random.permutation(PER_GROUP)[: random.integers(3, 6)]
            for item in taken:
                events.append((f"u{user}", f"i{(first + session) % GROUPS}-{item}", time, "5"))
                time += int(random.integers(*(INSIDE if item != taken[-1] else PAUSE)))
    items = [f"i{group}-{item}" for group in range(GROUPS) for item in range(PER_GROUP)]
    return planted.Planted(events, {item: [] for item in items})


def test_a_network_learns_what_the_next_basket_holds(tmp_path):
    workspace = planted.write(baskets(), planted.settings(SETTINGS), tmp_path / "project")
    asked = Validation(
        EventLog.open(workspace.arrays),
        max_history=200,
        num_queries=10**6,
        num_labelled=0,
        seed=0,
        next_session=True,
    )
    found = {}
    for predict in ("next_item", "next_session"):
        cfg = planted.settings(SETTINGS, {"finetune.predict": predict})
        scorer, _ = planted.train(cfg, workspace)
        found[predict] = asked(scorer.model, scorer.device)["validation_hr@10"]
    # What is left of the group before takes places where the next line of a receipt is learnt.
    assert found["next_session"] >= 0.95
    assert found["next_item"] <= 0.8
