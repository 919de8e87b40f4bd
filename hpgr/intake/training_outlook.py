"""What a log will lead to, though nothing is wrong with it: no ranking, repeats kept.

What the sessionize stage decides from the training events, told beforehand from all of them. Reads
the rows that the doctor set aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpgr.data import labels
from hpgr.data.repeats import removes_history
from hpgr.intake.contract import ACTION, ITEM, USER
from hpgr.intake.staging import open_duckdb

if TYPE_CHECKING:
    from hpgr.config import Config


@dataclass(frozen=True)
class Note:
    """The fields of a problem that is none; `column` is the contract's."""

    kind: str
    column: str
    found: str
    expected: str
    fix: str


def notes(staged: Path, cfg: Config) -> Iterator[Note]:
    """What is worth knowing of the log in `staged` before training, in order of columns."""
    with open_duckdb(staged.parent) as connection:
        actions = connection.execute(
            f"SELECT {ACTION}, count(*) FROM read_parquet(?) GROUP BY 1", [str(staged)]
        ).fetchall()
        users, pairs = connection.execute(
            f"SELECT count(DISTINCT {USER}), count(*) FROM "
            f"(SELECT DISTINCT {USER}, {ITEM} FROM read_parquet(?))",
            [str(staged)],
        ).fetchall()[0]
    counts: dict[str | None, int] = dict(actions)
    events = sum(counts.values())
    share = (events - pairs) / max(1, events - users)
    if share > cfg.evaluate.max_repeat_share:
        limit = f"{cfg.evaluate.max_repeat_share:.0%}"
        removed = removes_history(share, cfg.evaluate)
        now = "leave the answers" if removed else "stay in the answers"
        yield Note(
            "repeats",
            ITEM,
            f"{share:.1%} of the next events repeat an item that their user had before",
            f"up to {limit} (evaluate.max_repeat_share), or that repeats are meant",
            f"items that a user had before {now} (evaluate.remove_history: "
            f"{str(not removed).lower()} would change that)",
        )
    positives = labels.positives(counts, cfg.sessionize)
    if not labels.can_rank(positives, events, cfg.sessionize):
        found, fix = labels.finding(positives, events, counts, cfg.sessionize)
        expected = "enough events of both labels; the model retrieves and learns no ranking"
        yield Note("one label", ACTION, found, expected, fix)
