"""The report page: self-contained, escaped, and saying what the numbers say."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from evaluation_log import make_log, random_log
from test_evaluate import CONFIG, Knowing

from hpgr.data.log import TEST
from hpgr.evaluation import examples, figures, protocols, report
from hpgr.evaluation import metric_tables as tables
from hpgr.evaluation.blend import Blend
from hpgr.evaluation.metric_tables import Tables
from hpgr.evaluation.retrieval import Retrieved

SETTINGS = CONFIG.evaluate


def some_tables(log, shift=5):
    queries = protocols.next_item(log, TEST)
    rng = np.random.default_rng(0)
    outcomes = {}
    for name, worse in (("hpgr", 0), ("popularity", shift)):
        ranks = rng.integers(1, 12, len(queries)) + worse
        top = rng.integers(2, log.meta.num_items, (len(queries), 3))
        outcomes[name] = Retrieved(ranks, top, np.zeros(top.shape, np.float32))
    return tables.retrieval_tables("R1", log, queries, outcomes, SETTINGS, main="hpgr")


def names_for(log, title="Film {}"):
    return examples.Names(
        [title.format(i) for i in range(log.meta.num_items)],
        [f"user {u}" for u in range(log.meta.num_users)],
        ["", "no", "yes"],
    )


def cards_for(log, names, weight=0.0):
    return examples.examples(
        log,
        examples.pick(log, protocols.next_item(log, TEST), SETTINGS),
        Knowing(log),
        names,
        SETTINGS,
        max_history=200,
        ranks=True,
        blend=Blend(weight, 0.05),
    )


def test_the_cards_show_the_order_that_is_served():
    """The network likes items divisible by three: a large weight puts those that it found first."""
    log = random_log(0)
    named = names_for(log)
    plain, served = (cards_for(log, named, weight) for weight in (0.0, 100.0))
    for before, after in zip(plain, served, strict=True):
        liked = [offer.probability for offer in after.offers]
        assert liked == sorted(liked, reverse=True)
        if after.rank <= len(after.offers):
            assert after.offers[after.rank - 1].hit
        assert before.rank == 1 and before.offers[0].hit  # it knows what comes next
    assert any(card.rank > 1 for card in served)


def page(folder, log, names=None, notes=(), endings=None, standing=None, mechanism=None):
    report.write(
        folder,
        dataset="a log",
        tables=[some_tables(log)],
        curves={"finetune": pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})},
        endings=endings or {},
        standing=standing,
        mechanism=mechanism,
        cards=cards_for(log, names or names_for(log)),
        notes=list(notes),
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def test_page_reaches_for_nothing_outside_itself(tmp_path):
    html = page(tmp_path, random_log(0))
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert not re.search(r"https?://|<script|@import|url\(", html)


def test_titles_and_notes_are_escaped(tmp_path):
    log = random_log(0)
    html = page(tmp_path, log, names_for(log, "<script>alert({})</script>"), ["<b>note</b>"])
    assert "<script" not in html
    assert "&lt;b&gt;note" in html


def test_every_opened_tag_is_closed(tmp_path):
    class Balance(HTMLParser):
        void = frozenset({"meta", "img", "br"})
        stack: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag not in self.void:
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    parser = Balance()
    parser.feed(page(tmp_path, random_log(0)))
    assert parser.stack == []


def test_page_shows_the_headline_values(tmp_path):
    log = random_log(0)
    html = page(tmp_path, log)
    for row in some_tables(log).metrics.values():
        assert f"{row['hr@10']:.4f}" in html


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.1, "beats"),
        (-0.1, -0.01, "does not reach"),
        (-0.1, 0.1, "cannot be distinguished from"),
    ],
)
def test_verdict_follows_the_interval_against_the_best_baseline(low, high, words):
    difference = pd.DataFrame(
        [("ease", "hr@10", (low + high) / 2, low, high, 0.04), ("recency", "hr@10", 9, 9, 9, 0.01)],
        columns=["against", "metric", "difference", "low", "high", "p"],
    )
    values = {
        "hpgr": {"hr@10": 0.3},
        "hpgr_then_rank": {"hr@10": 0.9},
        "ease": {"hr@10": 0.2},
        "recency": {"hr@10": 0.1},
    }
    text = report.verdict(Tables("R1", "hpgr", values, {}, {"differences": difference}), "hr@10")
    assert f"{words} the best baseline, ease" in text


def test_best_is_the_lowest_where_lower_is_better(tmp_path):
    log = random_log(2, split="global-time")
    asked = protocols.labelled(log, TEST)
    rng = np.random.default_rng(0)
    good = np.where(asked.label == 1, 0.8, 0.2)
    table = tables.ranking_tables(
        "K1", log, asked, {"hpgr": good, "item_mean": rng.random(len(good))}, SETTINGS, main="hpgr"
    )
    report.write(
        tmp_path,
        dataset="a log",
        tables=[table],
        curves={},
        endings={},
        standing=None,
        mechanism=None,
        cards=[],
        notes=[],
    )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<b class="best">{table.metrics["hpgr"]["log_loss"]:.4f}</b>' in html
    assert (tmp_path / "figures" / "K1_calibration.png").is_file()


def test_card_marks_the_picked_event_and_the_hit():
    log = make_log([[(i, 10 * i, 1) for i in range(2, 8)]])
    (card,) = cards_for(log, names_for(log))
    assert [e.title for s in card.sessions for e in s.events if e.weight > 0] == ["Film 6"]
    assert (card.target, card.rank) == ("Film 7", 1)
    assert [o.title for o in card.offers if o.hit] == ["Film 7"]


def test_long_session_shows_the_picked_with_neighbours_and_counts_the_rest():
    log = make_log([[(i, 10 * i, 1) for i in range(2, 60)]])
    (card,) = cards_for(log, names_for(log))
    (session,) = card.sessions
    shown = len(session.events) + sum(e.skipped for e in session.events) + session.hidden_events
    assert shown == session.length == 57
    assert len(session.events) < 12


def test_users_with_several_sessions_are_drawn_first():
    day = 86_400
    single = [(2, 1, 1), (3, 2, 1), (4, 3, 1)]
    several = [(2, 1, 1), (3, 1 + day, 1), (4, 1 + 2 * day, 1)]
    log = make_log([single, several, single, several])
    picked = examples.pick(log, protocols.next_item(log, TEST), SETTINGS)
    assert set(picked.user.tolist()) == {1, 3}


def test_repeated_targets_are_counted():
    log = make_log([[(2, 1, 1), (3, 2, 1), (2, 3, 1)], [(2, 1, 1), (3, 2, 1), (4, 3, 1)]])
    assert tables.repeated_targets(log, protocols.next_item(log, TEST)) == 1


def test_curves_without_anything_to_draw_give_no_figure():
    assert figures.training_curves(pd.DataFrame({"step": [1], "seconds": [2.0]})) is None
