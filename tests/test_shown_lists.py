"""Ranking inside an impression on logs whose truth is planted, and the leaks it must not have."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_log import make_log, random_log
from one_by_one import OneByOne
from test_evaluate import CONFIG, prepare
from test_leaks import catalogue, settings, trained_looking

from hpgr.data.impressions import SCHEMA, TABLE
from hpgr.data.log import FIRST_ITEM, TEST, TRAIN, UNKNOWN, VALIDATION
from hpgr.evaluation import evaluate, shown_lists
from hpgr.model.interface import build
from hpgr.model.scoring import Scorer
from hpgr.workspace import HERE

SETTINGS = CONFIG.evaluate
NUM_ITEMS = 12


def table_of(lists):
    """The table of lists of (user, time, end, split, [(item, label), ...])."""
    rows = [
        {
            "impression": number, "impression_id": f"l{number}", "item_id": f"i{item}",
            "user": user, "item": item, "timestamp": time, "position": place, "label": label,
            "split": split, "end": end,
        }
        for number, (user, time, end, split, items) in enumerate(lists)
        for place, (item, label) in enumerate(items)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def planted(seed=0, num_users=60):
    """A log and lists in which the user's newest earlier event decides what is taken.

    It is the item after that of the event. The log holds the click itself, in the second of the
    list, and after it an event that would lead elsewhere.
    """
    rng = np.random.default_rng(seed)
    users, lists, parts = [], [], []
    for user in range(num_users):
        last = int(rng.integers(NUM_ITEMS))
        taken = (last + 1) % NUM_ITEMS
        time = 1000 + 10 * user
        history = [(int(rng.integers(NUM_ITEMS)), 5, 0), (last, 7, 0)]
        later = [(taken, time, 1), (int(rng.integers(NUM_ITEMS)), time + 1, 0)]
        users.append([(item + FIRST_ITEM, at, label) for item, at, label in history + later])
        parts.append([0, 1, 2, 2])
        others = rng.permutation([i for i in range(NUM_ITEMS) if i != taken])[:5]
        shown = rng.permutation([taken, *others])
        items = [(int(i) + FIRST_ITEM, int(i == taken)) for i in shown]
        lists.append((user, time, 4 * user + 2, TEST, items))
    log = make_log(users, split="global-time", num_items=NUM_ITEMS + FIRST_ITEM, held_out=parts)
    return log, table_of(lists)


class Follower(OneByOne):
    """Likes the item after that of the newest event it sees, and would take what it saw.

    Where it knows the place it likes what stands first.
    """

    def rank(self, histories, offsets, candidates, place=None):
        if place is not None:
            return np.where(place == 0, 0.8, 0.2).astype(np.float32)
        newest = histories.item[histories.offsets[1:] - 1] - FIRST_ITEM
        wanted = np.repeat((newest + 1) % NUM_ITEMS + FIRST_ITEM, np.diff(offsets))
        return np.where(candidates == wanted, 0.9, 0.1).astype(np.float32)

    def retrieve(self, histories):
        scores = np.zeros((len(histories), NUM_ITEMS + FIRST_ITEM), dtype=np.float32)
        query = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
        scores[query, histories.item] = 1.0
        return scores


def judged(log, table, network, *, candidates="impressions", places=True):
    return shown_lists.judge_lists(
        log, table, {"hpgr": network}, network, SETTINGS, candidates=candidates, places=places,
        max_history=50,
    )  # fmt: skip


def test_a_network_that_reads_the_history_puts_what_was_taken_first():
    found = judged(*planted(), Follower())
    rows = found.tables[0].metrics
    assert rows["hpgr"] == dict.fromkeys(["gauc", "ndcg@5", "ndcg@10", "mrr", "auc"], 1.0)
    assert abs(rows["position"]["gauc"] - 0.5) < 0.15  # shown in random order


def test_the_click_in_the_log_does_not_leak_into_its_own_list():
    """A model of repeats would take the click, if the history held it."""
    log, table = planted()
    found = judged(log, table, Follower()).tables[0].metrics["hpgr_next_item"]
    assert found["gauc"] < 0.6
    moved = table.set_column(
        table.column_names.index("end"), "end", pa.compute.add(table["end"], 1).cast(pa.int64())
    )
    leaked = judged(log, moved, Follower()).tables[0].metrics["hpgr_next_item"]
    assert leaked["gauc"] > 0.8  # so the test would see it


def test_events_from_the_second_of_a_list_on_change_no_score():
    log, table = planted()
    item = log.item.copy()
    item[log.timestamp >= 1000] = FIRST_ITEM
    changed = type(log)(**{**log.__dict__, "item": item})
    before, after = (judged(one, table, Follower()) for one in (log, changed))
    assert before.scores.keys() == after.scores.keys()
    for name, score in before.scores.items():
        np.testing.assert_array_equal(score, after.scores[name], err_msg=name)


@pytest.mark.parametrize("name", ["hpgr", "hstu", "mtgr", "sasrec"])
def test_neither_kind_nor_time_of_later_events_reaches_a_network(name):
    """The time of a user's next event is in the log, and a list asks before it."""
    model = build(settings(name=name), catalogue(), ranking=True)
    scorer = Scorer(trained_looking(model), torch.device("cpu"), max_history=40)
    log = random_log(3, num_items=48, split="global-time")
    shown = [(5, 1), (6, 0), (UNKNOWN, 0), (17, 0)]
    lists, later = [], np.zeros(log.meta.num_events, dtype=bool)
    for user in range(12):
        start, stop = map(int, log.user_offsets[user : user + 2])
        middle = start + (stop - start) // 2 if user else start  # one without a history
        end = int(log.second_start()[middle])
        time = int(log.timestamp[end - 1]) + 1 if end > start else 1
        lists.append((user, time, end, TEST, shown))
        lists.append((user, int(log.timestamp[stop - 1]) + 200_000, stop, TEST, shown))
        later[end:stop] = True
    moved = log.timestamp + 100_000 * later
    other = np.where(later, FIRST_ITEM, log.item).astype(np.int32)
    changed = type(log)(**{**log.__dict__, "timestamp": moved, "item": other})
    before, after = (judged(one, table_of(lists), scorer).scores for one in (log, changed))
    for row in ("hpgr", "hpgr_next_item"):
        first, second = (found[row].reshape(12, 2, 4) for found in (before, after))
        assert (first[:, 1] != second[:, 1]).any()  # the second list of a user sees them
        np.testing.assert_allclose(first[:, 0], second[:, 0], rtol=1e-5, err_msg=row)


def test_lists_of_one_label_are_counted_and_left_out():
    log, _ = planted(num_users=3)
    table = table_of(
        [
            (0, 1000, 2, TEST, [(2, 1), (3, 0)]),
            (1, 1010, 6, TEST, [(2, 0), (3, 0)]),
            (2, 1020, 10, TEST, [(2, 1), (3, 1)]),
            (-1, 1020, 0, TEST, [(2, 1), (3, 0)]),
        ]
    )
    counts = judged(log, table, Follower()).tables[0].counts
    assert (counts["queries"], counts["candidates"]) == (1, 2)
    assert (counts["lists_of_one_label"], counts["lists_without_user"]) == (2, 1)


def test_unknown_items_tie_below_all_others_for_retrieval():
    log, _ = planted(num_users=1)
    table = table_of([(0, 1000, 2, TEST, [(UNKNOWN, 1), (5, 0), (UNKNOWN, 0)])])
    found = judged(log, table, Follower())
    assert found.tables[0].metrics["hpgr_next_item"]["gauc"] == pytest.approx(0.25)
    assert found.tables[0].counts["unknown_positives"] == 1


def test_a_user_without_earlier_events_is_asked_with_an_empty_history():
    log, _ = planted(num_users=2)
    table = table_of([(0, 1000, 2, TEST, [(2, 1), (3, 0)]), (1, 1, 4, TEST, [(2, 1), (3, 0)])])

    class Patient(Follower):
        def rank(self, histories, offsets, candidates, place=None):
            return np.full(len(candidates), 0.5, dtype=np.float32)

    found = judged(log, table, Patient())
    assert found.tables[0].counts["lists_without_history"] == 1
    assert found.scores["hpgr_next_item"][2:].tolist() == [0, 0]


def test_simple_scores_are_the_smoothed_shares_of_training_lists():
    train = [(0, t, 0, TRAIN, [(2, 1), (3, 0), (4, 0)]) for t in range(3)]
    train += [(1, 9, 4, TRAIN, [(3, 1), (2, 0)])]
    table = table_of([*train, (1, 1010, 6, TEST, [(4, 0), (2, 1), (9, 0)])])
    lists, past = (shown_lists.ShownLists.of(table, split) for split in (TEST, TRAIN))
    found = shown_lists.simple_scores(lists, past, SETTINGS)
    common, prior = 4 / 11, SETTINGS.prior_events

    def share(taken, shown):
        return (taken + prior * common) / (shown + prior)

    item = [share(0, 3), share(3, 4), share(0, 0)]
    place = [share(4, 4), share(0, 4), share(0, 3)]
    odds = [np.log(p / (1 - p)) + np.log(q / (1 - q)) for p, q in zip(item, place, strict=True)]
    assert found["position"].tolist() == [0, -1, -2]
    assert found["item_mean"] == pytest.approx(item)
    assert found["item_plus_position"] == pytest.approx(odds)


def test_the_row_with_position_is_of_a_network_that_knows_the_places():
    log, table = planted()
    found = judged(log, table, Follower()).scores["hpgr_with_position"]
    assert found == pytest.approx(np.where(table["position"].to_numpy() == 0, 0.8, 0.2))
    unknown = table.set_column(
        table.column_names.index("position"), "position", pa.nulls(len(table), pa.int64())
    )
    for others in ({"places": False}, {"candidates": None, "places": False}):
        assert "hpgr_with_position" not in judged(log, table, Follower(), **others).scores
    assert "hpgr_with_position" not in judged(log, unknown, Follower()).scores


def test_the_stage_writes_the_protocol_everywhere(monkeypatch, tmp_path, capsys):
    log = random_log(2, split="global-time")
    rng = np.random.default_rng(0)
    lists = []
    for row in np.flatnonzero(log.split == TEST)[::3]:
        user = int(log.user_of_event()[row])
        before = int(log.second_start()[row])
        items = rng.choice(np.arange(FIRST_ITEM, log.meta.num_items), 6, replace=False)
        shown = [(int(item), int(place == 2)) for place, item in enumerate(items)]
        lists.append((user, int(log.timestamp[row]), before, TEST, shown))
    lists.sort(key=lambda one: one[:3])
    prepare(log, monkeypatch, tmp_path)
    pq.write_table(table_of(lists), HERE.sessions / TABLE)
    evaluate.evaluate(CONFIG)
    found = json.loads((HERE.evaluation / "metrics.json").read_text())
    assert list(found) == ["R2", "K1", "I1"]
    assert found["I1"]["counts"]["queries"] == len(lists)
    answers = pd.read_parquet(HERE.evaluation / "impressions.parquet")
    for model, row in found["I1"].items():
        if model == "counts":
            continue
        areas = []
        for _, one in answers.groupby("impression"):
            taken = one[f"score_{model}"][one["label"] == 1].iloc[0]
            other = one[f"score_{model}"][one["label"] == 0]
            areas.append(((taken > other) + 0.5 * (taken == other)).mean())
        assert row["gauc"] == pytest.approx(np.mean(areas), abs=1e-6), model
    page = (HERE.evaluation / "report.html").read_text()
    assert "Ranking inside an impression (I1)" in page and "position as shown" in page
    assert "Ranking inside an impression (I1)" in capsys.readouterr().out


@pytest.mark.parametrize("candidates", ["events", "impressions", None])
def test_the_table_says_where_its_labels_were_not_trained_on(candidates):
    table = judged(*planted(), Follower(), candidates=candidates).tables[0]
    assert ("hpgr_next_item" in table.metrics) == (candidates is not None)
    remark = table.remark or ""
    assert ("log's own labels" in remark) == (candidates == "events")
    assert ("no ranking head" in remark) == (candidates is None)


def test_validation_names_a_model_that_orders_lists_better():
    """By GAUC; what was shown on top is no rival, as it says nothing of what to show."""
    log, table = planted()
    table = table.set_column(
        table.column_names.index("split"), "split", pa.array(np.arange(len(table)) // 6 % 2, "i1")
    )

    class Tables(Follower):
        def retrieve(self, histories):
            newest = histories.item[histories.offsets[1:] - 1] - FIRST_ITEM
            scores = np.zeros((len(histories), NUM_ITEMS + FIRST_ITEM), dtype=np.float32)
            scores[np.arange(len(scores)), (newest + 1) % NUM_ITEMS + FIRST_ITEM] = 1.0
            return scores

    class Constant(Follower):
        def rank(self, histories, offsets, candidates, place=None):
            return np.full(len(candidates), 0.5, dtype=np.float32)

    for network, ahead in ((Follower(), None), (Constant(), "transitions")):
        models = {"hpgr": network, "transitions": Tables()}
        found = shown_lists.list_standing(log, table, models, network, SETTINGS, max_history=50)
        assert found.serve_instead == ahead and found.metric == "gauc"
        assert set(found.values) == {"hpgr", "transitions", "item_mean"}
        assert found.queries == 30 and found.values["transitions"]["gauc"] == 1.0


def test_a_network_trained_on_lists_is_not_judged_by_the_log_s_own_labels(monkeypatch, tmp_path):
    log = random_log(2, split="global-time")
    prepare(log, monkeypatch, tmp_path)
    path = HERE.finetuned / "config.json"
    config = json.loads(path.read_text())
    config |= {"candidates": "impressions", "training": {"monitor": "validation_ranking"}}
    lists = [
        (0, int(log.timestamp.max()) + n, int(log.user_offsets[1]), part, [(2, 1), (3, 0)])
        for n, part in enumerate((TRAIN, VALIDATION, TEST))
    ]
    monkeypatch.setattr(evaluate, "training_endings", lambda _: {})
    path.write_text(json.dumps(config))
    pq.write_table(table_of(lists), HERE.sessions / TABLE)
    evaluate.evaluate(CONFIG)
    assert list(json.loads((HERE.evaluation / "metrics.json").read_text())) == ["R2", "I1"]
    page = (HERE.evaluation / "report.html").read_text()
    assert "CTR, temporal (K1) is left out: pCTR of hpgr was trained on shown lists" in page
    assert json.loads((HERE.evaluation / "verdict.json").read_text())["metric"] == "gauc"


def test_leave_one_out_leaves_it_out_with_a_note(monkeypatch, tmp_path):
    prepare(random_log(0), monkeypatch, tmp_path)
    pq.write_table(table_of([(0, 1000, 2, -1, [(2, 1), (3, 0)])]), HERE.sessions / TABLE)
    evaluate.evaluate(CONFIG)
    assert list(json.loads((HERE.evaluation / "metrics.json").read_text())) == ["R1"]
    page = (HERE.evaluation / "report.html").read_text()
    assert "Ranking inside an impression (I1) is left out" in page
