"""Requests put together by hand: a user of the log, titles as a person types them."""

import pytest

from hpgr.data.log import EventLog
from hpgr.runtime import UserError
from hpgr.serving.typed_request import find_items, of_user
from hpgr.workspace import HERE

TITLES = {
    "1": "Alien (1979)",
    "2": "Aliens (1986)",
    "3": "Hamlet (1996)",
    "4": "Hamlet (2000)",
    "5": "Good, the Bad and the Ugly, The (1966)",
    "6": "1",
    "7": "20,000 Leagues Under the Sea (1954)",
    "8": "10",
    "a,b": "Low",
    "9": "Ünï  double\nspace ",
    "12": "20",
}


@pytest.fixture
def inside(registered_project, monkeypatch):
    monkeypatch.chdir(registered_project)


def test_all_events_of_a_user_become_a_request_a_second_after_the_last(inside):
    log = EventLog.open(HERE.sessions / "arrays")
    request = of_user("user7", None)
    rows = slice(log.user_offsets[7], log.user_offsets[8])
    assert request.item_ids == [f"id{item}" for item in log.item[rows]]
    assert request.timestamps == log.timestamp[rows].tolist()
    assert request.request_time == log.timestamp[rows].max() + 1


def test_a_user_that_the_log_has_not_is_reported_some_that_it_has(inside):
    with pytest.raises(UserError, match="the log has no user 'nobody'; some that it has: user0, "):
        of_user("nobody", None)


def test_a_user_without_an_event_before_the_time_is_reported_so(inside):
    with pytest.raises(UserError, match="user user7 has no event before 9; pass a later --at"):
        of_user("user7", "9")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("alien, ALIENS (1986)", ["1", "2"]),
        ("Good, the Bad and the Ugly, The, Hamlet (2000)", ["5", "4"]),
        ("1", ["1"]),  # an id before a title
        ("2, 3", ["2", "3"]),
        ("20,000 Leagues Under the Sea (1954), Alien", ["7", "1"]),
        ("20,000 leagues under the sea,alien", ["7", "1"]),
        ("20, Alien", ["12", "1"]),
        ("Good,the Bad and the Ugly,The,2", ["5", "2"]),
        ("a,b, low,1", ["a,b", "a,b", "1"]),
        ("U\u0308nï double space", ["9"]),
        ("10", ["8"]),
    ],
)
def test_entries_are_ids_and_titles_with_or_without_the_year(text, found):
    assert find_items(text, TITLES) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Alien, Hamlet",
            "'Hamlet' fits several items: Hamlet (1996) (id 3); Hamlet (2000) (id 4)",
        ),
        ("Allien", "'Allien' is neither an item id nor a title. Closest titles: Alien"),
        ("qqqqqq", "Closest titles: none"),
        ("", "'' is neither an item id nor a title"),
        ("Alien,, Aliens", "'' is neither an item id nor a title"),
    ],
)
def test_an_entry_that_is_no_one_item_is_reported_what_is_near(text, message):
    with pytest.raises(UserError) as error:
        find_items(text, TITLES)
    assert message in str(error.value)
