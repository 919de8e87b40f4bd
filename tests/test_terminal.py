"""Text from data on a terminal: shown as it is, whatever it holds."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from hpgr.serving.answer import show
from hpgr.serving.recommender import Anchor, Answer, Recommended
from hpgr.serving.request import Request
from hpgr.terminal import cell, printable

TITLES = [
    "Kind of Blue [remastered]",
    "Low [/disc 2]",
    "[red]Roses[/red]",
    "[link=http://x.example]here[/link]",
    "[bold",
    "back\\slash [x]",
    ":heart: :smile:",
]


@pytest.mark.parametrize("title", TITLES)
def test_a_cell_shows_brackets_and_colons_as_they_are(title):
    table = Table()
    table.add_column("title")
    table.add_row(cell(title))
    stream = io.StringIO()
    Console(file=stream, width=100).print(table)
    assert title in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("over\rwritten", "over\\rwritten"),
        ("bell\x07", "bell\\x07"),
        ("left\u202eright", "left\\u202eright"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Ünï – 東京 👩‍🎤", "Ünï – 東京 👩‍🎤"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(text, shown):
    assert printable(text) == shown
    assert cell(text).plain == shown.replace("\n", "\\n").replace("\t", "\\t")


class OneAnswer:
    """A recommender that knows the titles and answers with all of them."""

    def __init__(self):
        self.names = {n: (f"[i]{n}", t) for n, t in enumerate([*TITLES, "clear\x1b[2J"])}

    def recommend(self, requests, *, k, like_weight):
        items = [
            Recommended(item_id, title, 0.5, 0.5, [Anchor(item_id, title, 1.0)])
            for item_id, title in self.names.values()
        ]
        return [Answer(items, [Anchor("[i]0", TITLES[0], 1.0)], "history", 0)]


def test_an_answer_shows_every_title_and_id_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    recommender = OneAnswer()
    ids = [item_id for item_id, _ in recommender.names.values()]
    show(recommender, Request(10, ids, list(range(len(ids)))), k=9, title="user [u]1")
    said = capsys.readouterr().out
    assert "user [u]1" in said and f"anchors: {TITLES[0]} (100%)" in said
    for item_id, title in recommender.names.values():
        row = next(line for line in said.splitlines() if f" {item_id} " in line)
        assert row.count(printable(title)) == 2  # the title, and its anchor
    assert "\x1b[2J" not in said
