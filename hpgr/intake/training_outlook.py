"""Consequences of a sound log for training: no ranking, repeats kept.

The sessionize stage decides this from the training events; here it is estimated from all events,
before any stage runs. Reads the rows that the doctor staged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpgr.data import labels
from hpgr.data.repeats import removes_history
from hpgr.intake.contract import ACTION, ITEM, USER
from hpgr.intake.file_problems import FileProblem, note
from hpgr.intake.staging import open_duckdb

if TYPE_CHECKING:
    from hpgr.config import Config


def training_notes(
    staged: Path, file: Path, columns: Mapping[str, str], cfg: Config
) -> Iterator[FileProblem]:
    """Notes on the log in `staged` that matter for training, in order of columns.

    Args:
        staged: the rows.
        file: where they are from.
        columns: name in the file of each of our columns.
        cfg: sections `sessionize` and `evaluate`.
    """
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
        yield note(
            file,
            "repeats",
            columns[ITEM],
            f"{share:.1%} of the next events repeat an item that their user had before",
            f"up to {limit} (evaluate.max_repeat_share), or that repeats are meant",
            f"items that a user had before {now} (evaluate.remove_history: "
            f"{str(not removed).lower()} would change that)",
        )
    positives = labels.positives(counts, cfg.sessionize)
    if not labels.can_rank(positives, events, cfg.sessionize):
        found, fix = labels.finding(positives, events, counts, cfg.sessionize)
        expected = "enough events of both labels; the model retrieves and learns no ranking"
        yield note(file, "one label", columns[ACTION], found, expected, fix)
