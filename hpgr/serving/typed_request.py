"""A request put together by hand: a user of the log, or a history typed as titles and ids.

Reads the tables of `artifacts/sessions/`. Writes nothing.
"""

from __future__ import annotations

import difflib
import re
import time
import unicodedata
from datetime import UTC, datetime

import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpgr.data.id_map import Ids
from hpgr.runtime import UserError
from hpgr.serving.recommender import Recommender
from hpgr.serving.request import LATEST_SECONDS, Request
from hpgr.terminal import short, shown
from hpgr.workspace import HERE, Workspace

YEAR = re.compile(r"\s*\(\d{4}\)$")
COMMA = re.compile(r" ?, ?")
SPACING_S = 60  # between the events of a typed history, which has no times


def of_user(user_id: str, at: str | None, workspace: Workspace = HERE) -> Request:
    """All events of a user before `at`; without it one second after the last one.

    Raises:
        UserError: the log has no such user, or no event of the user before `at`.
    """
    sessions = workspace.sessions
    for name in ("users", "events", "items", "actions"):
        if not (sessions / f"{name}.parquet").is_file():
            raise UserError(f"{sessions / name}.parquet not found: run `hpgr sessionize` first")
    users = pq.read_table(sessions / "users.parquet", filters=[("user_id", "=", user_id)])
    if not users.num_rows:
        first = pq.read_table(sessions / "users.parquet")["user_id"].slice(0, 5).to_pylist()
        some = ", ".join(map(short, first))
        raise UserError(f"the log has no user {shown(user_id)}; some that it has: {some}")
    user = users["user"][0].as_py()
    events = pq.read_table(sessions / "events.parquet", filters=[("user", "=", user)])
    events = events.sort_by("position")
    asked = seconds(at, where="--at") if at is not None else pc.max(events["timestamp"]).as_py() + 1
    events = events.filter(pc.less(events["timestamp"], asked))
    if not events.num_rows:
        raise UserError(f"user {short(user_id)} has no event before {asked}; pass a later --at")
    ids = Ids.read(sessions)
    item, action = ({index: i for i, index in table.items()} for table in ids)
    return Request(
        request_time=asked,
        item_ids=[item[i] for i in events["item"].to_pylist()],
        timestamps=events["timestamp"].to_pylist(),
        actions=[action.get(a) for a in events["action"].to_pylist()],
        session_ids=[str(s) for s in events["session"].to_pylist()],
    )


def typed(text: str, at: str | None, recommender: Recommender) -> Request:
    """A history typed as titles or ids, oldest first, read as one session that just ended.

    Raises:
        UserError: an entry is no item; the message offers the closest titles.
    """
    item_ids = find_items(text, {i: title for i, title in recommender.names.values()})
    asked = seconds(at, where="--at") if at is not None else int(time.time())
    first = asked - SPACING_S * len(item_ids)
    return Request(asked, item_ids, [first + SPACING_S * i for i in range(len(item_ids))])


def find_items(text: str, titles: dict[str, str]) -> list[str]:
    """Item ids of the comma-separated entries of `text`, by the `titles` of all ids.

    An entry is an id, a title, or a title without its year where that is unambiguous; letter case
    and the amount of white space do not matter. Ids and titles may hold commas too: the longest run
    of pieces that is one of these is taken first.

    Raises:
        UserError: a piece is no item, or a title without year fits several.
    """
    known: dict[str, list[str]] = {}
    for item_id, title in titles.items():
        for form in {_folded(title), _folded(YEAR.sub("", title))}:
            known.setdefault(form, []).append(item_id)
    ids = {_folded(item_id): item_id for item_id in titles}
    longest = 1 + max((form.count(",") for form in (*known, *ids)), default=0)
    pieces = text.split(",")
    found: list[str] = []
    place = 0
    while place < len(pieces):
        for end in range(min(len(pieces), place + longest), place, -1):
            entry = ",".join(pieces[place:end])  # as typed: a title may have no space at its comma
            matches = _named(entry, titles, ids, known)
            if len(matches) > 1:
                options = "; ".join(f"{short(titles[i])} (id {short(i)})" for i in matches)
                raise UserError(f"{shown(entry.strip())} fits several items: {options}")
            if matches:
                found += matches
                place = end
                break
        else:
            close = difflib.get_close_matches(_folded(pieces[place]), known, n=3)
            offer = "; ".join(short(titles[known[form][0]]) for form in close) or "none"
            raise UserError(
                f"{shown(pieces[place].strip())} is neither an item id nor a title. "
                f"Closest titles: {offer}"
            )
    return found


def _named(
    entry: str, titles: dict[str, str], ids: dict[str, str], known: dict[str, list[str]]
) -> list[str]:
    """Ids that `entry` may mean; an exact id comes before everything else."""
    for spelled in (entry, entry.strip()):
        if spelled in titles:
            return [spelled]
    form = _folded(entry)
    return known.get(form) or ([ids[form]] if form in ids else [])


def _folded(text: str) -> str:
    """Letter case, composed signs and white space, also around commas, made equal."""
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return COMMA.sub(",", plain).strip()


def seconds(value: str | int | datetime, *, where: str) -> int:
    """Seconds since 1970 of an ISO 8601 time (UTC where it names no zone) or of such a number.

    Raises:
        UserError: it is neither; the message begins with `where` it stands.
    """
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        number = int(value)
        if not 0 <= number <= LATEST_SECONDS:
            raise UserError(
                f"{where} {shown(number)}: expected seconds since 1970, not milliseconds"
            )
        return number
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise UserError(
            f"{where} {shown(value)}: expected seconds since 1970 or a time such as "
            "2003-02-28T12:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
