"""Check shown lists by their rules; write the sound ones, and the others with reasons.

Shared by the validate stage, the check of a new batch and the doctor. Writes the staged rows
(`staging.py`), `impressions.parquet` and `impressions_quarantine.parquet` to the folder it is
given. DuckDB compares the rows of a list out of core, so that memory holds one chunk of rows.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hpgr.data.parquet import write_parquet
from hpgr.intake.contract import (
    IMPRESSION,
    IMPRESSIONS,
    ITEM,
    LABEL,
    LINE,
    POSITION,
    ROW,
    SHOWN_COLUMNS,
    SOURCE,
    TIMESTAMP,
    USER,
    among,
    join_reasons,
    with_seconds,
)
from hpgr.intake.expectations import Expectations
from hpgr.intake.impression_rules import (
    IN_A_BAD_LIST,
    LABEL_TEXT,
    LIST_RULES,
    POSITION_TEXT,
    SHOWN_AGAIN_RULE,
    shown_rules,
)
from hpgr.intake.staging import READ, mend_ids, open_duckdb, stage, staged_rows
from hpgr.intake.suspects import suspects, with_sample
from hpgr.runtime import UserError

if TYPE_CHECKING:
    import duckdb

    from hpgr.config import Config, Validate

SHOWN_IDS = (IMPRESSION, USER, ITEM)
SHOWN_SCHEMA = pa.schema(
    [(name, pa.string()) for name in SHOWN_IDS]
    + [(TIMESTAMP, pa.int64()), (POSITION, pa.int64()), (LABEL, pa.int8()), (ROW, pa.int64())]
)
QUARANTINED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in SHOWN_COLUMNS]
    + [(ROW, pa.int64()), ("file", pa.string()), (LINE, pa.int64()), ("reason", pa.string())]
)
ROWS_AT_A_TIME = 1 << 18
CLICKED = f"lower({LABEL}[1]) IN ('1', 't')"  # of an accepted spelling, see LABEL_TEXT


@dataclass
class ShownCounts:
    """Numbers of shown items and of lists by result of the check.

    `quarantined` rows are bad or lie in a list with a bad row; `shown_again` ones repeat an item of
    their list and are left out alone.
    """

    rows: int = 0
    lists: int = 0
    accepted: int = 0
    accepted_lists: int = 0
    quarantined: int = 0
    shown_again: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The figures that `impressions_rules` are about."""
        return {
            "impressions_accepted": self.accepted_lists,
            "impressions_left_out": self.quarantined / self.rows,
        }


def empty_impressions(out: Path) -> None:
    """Write the table of a log without impressions: a stage can only depend on what is there."""
    pq.write_table(SHOWN_SCHEMA.empty_table(), out / "impressions.parquet")


def screen_impressions(
    chunks: Iterator[pd.DataFrame],
    tables: Sequence[Path],
    cfg: Config,
    scratch: Path,
    *,
    out: Path,
    files: Sequence[str],
    expectations: Expectations,
) -> ShownCounts:
    """Check shown items; write the accepted lists and the quarantine to `out`.

    Args:
        chunks: as `RawLog.impressions`.
        tables: the file or folder of each part.
        cfg: the limits and the names of columns.
        scratch: an existing folder.
        out: an existing folder.
        files: name of each file of impressions, by its `source`.
        expectations: gets the suite `impressions`.

    Raises:
        UserError: there is no row at all, or a file is unreadable.
    """
    staged = scratch / "impressions-staged.parquet"
    positions = cfg.data.columns.position is not None
    stage(chunks, staged, SHOWN_COLUMNS)
    rows = pq.read_metadata(staged).num_rows
    if not rows:
        raise UserError(f"{', '.join(files)} has no rows: expected one shown item a row")
    mend_ids(staged, tables, SHOWN_IDS)
    rules, reasons = shown_rules(cfg.validate_, positions=positions), list[pd.DataFrame]()
    for chunk, found in check_shown(staged, expectations, cfg.validate_, positions=positions):
        reason = join_reasons(found, rules, len(chunk))
        broken = reason != ""
        own = pd.DataFrame({ROW: chunk[ROW].to_numpy()[broken], "reason": reason[broken]})
        reasons.append(own.astype({"reason": "str"}))
    broken_rows = pd.concat(reasons, ignore_index=True)
    with open_duckdb(scratch) as connection:
        _judge(connection, staged, broken_rows)
        _write(connection, out, files)
        counts = _counted(connection)
    counts.reasons = {
        tally.rule.name: tally.broken for tally in expectations.tallies[IMPRESSIONS] if tally.broken
    }
    return counts


def check_shown(
    staged: Path, expectations: Expectations, limits: Validate, *, positions: bool
) -> Iterator[tuple[pd.DataFrame, dict[str, np.ndarray]]]:
    """Chunks of the staged rows that may break a rule, with the positions that break each.

    Rows that surely break none are left out but for a sample; they count as checked.
    """
    rules = shown_rules(limits, positions=positions)
    expectations.add(IMPRESSIONS, rules)
    now, rows = int(time.time()), pq.read_metadata(staged).num_rows
    flags = _flags(staged)
    also = f"{IMPRESSION} NOTNULL AND regexp_matches({LABEL}, '{LABEL_TEXT}')"
    if positions:
        also += f" AND regexp_matches({POSITION}, '{POSITION_TEXT}')"
    suspect = suspects(staged, limits, now=now, known=None, also=also)
    suspect = np.unique(np.concatenate([suspect, *flags.values()]))
    judged = with_sample(suspect, rows)
    for frame in staged_rows(staged, judged, limits.chunk_rows):
        chunk = with_seconds(frame, now)
        number = chunk[ROW].to_numpy()
        chunk = chunk.assign(**{name: among(found, number) for name, found in flags.items()})
        found = expectations.check(IMPRESSIONS, chunk)
        broken = number[np.unique(np.concatenate([*found.values(), []])).astype(int)]
        if not np.isin(broken, suspect).all():
            raise RuntimeError(f"rows {broken} break a rule that the scan for suspects lacks")
        yield chunk, found
    without = [] if positions else [POSITION]
    expectations.passed(IMPRESSIONS, rows - len(judged), without=without)


def _flags(staged: Path) -> dict[str, np.ndarray]:
    """Sorted numbers of the rows that break a rule together with others, by flag."""
    shown = f"SELECT *, {CLICKED} AS clicked FROM ({READ})"
    by_list = (
        f"SELECT {ROW} FROM ({READ}) SEMI JOIN (SELECT {IMPRESSION} FROM ({READ}) "
        f"GROUP BY 1 HAVING count(DISTINCT {{}}) > 1) USING ({IMPRESSION}) ORDER BY 1"
    )
    by_item = (
        f"SELECT {IMPRESSION}, {ITEM}, min({ROW}) AS first FROM ({shown}) "
        "GROUP BY 1, 2 HAVING count(*) > 1 AND count(DISTINCT clicked) {}"
    )
    queries = {
        "several_users": by_list.format(USER),
        "several_times": by_list.format(TIMESTAMP),
        "both_labels": f"SELECT {ROW} FROM ({READ}) SEMI JOIN ({by_item.format('> 1')}) "
        f"USING ({IMPRESSION}, {ITEM}) ORDER BY 1",
        SHOWN_AGAIN_RULE.arguments["column"]: f"SELECT {ROW} FROM ({READ}) "
        f"JOIN ({by_item.format('< 2')}) USING ({IMPRESSION}, {ITEM}) WHERE {ROW} > first "
        "ORDER BY 1",
    }
    assert set(LIST_RULES) < set(queries)
    file = [glob.escape(str(staged))]  # a folder may have a [ in its name
    with open_duckdb(staged.parent) as connection:
        return {
            flag: np.asarray(connection.execute(sql, file).fetchnumpy()[ROW], dtype=np.int64)
            for flag, sql in queries.items()
        }


def _judge(connection: duckdb.DuckDBPyConnection, staged: Path, broken: pd.DataFrame) -> None:
    """Make the view `judged`: the staged rows with `reason`, null for those that are accepted.

    `broken` has `row` and `reason` of the rows that break a rule.
    """
    connection.register("broken", broken)
    again = SHOWN_AGAIN_RULE.name
    quoted = glob.escape(str(staged)).replace("'", "''")  # a view has no parameters
    connection.execute(f"CREATE VIEW staged AS SELECT * FROM read_parquet('{quoted}')")
    connection.execute(
        f"CREATE TABLE bad_lists AS SELECT DISTINCT {IMPRESSION} FROM staged "
        f"JOIN broken USING ({ROW}) WHERE reason <> '{again}' AND {IMPRESSION} NOTNULL"
    )
    in_bad_list = f"{IMPRESSION} IN (SELECT {IMPRESSION} FROM bad_lists)"
    connection.execute(
        f"CREATE VIEW judged AS SELECT staged.*, CASE WHEN reason <> '{again}' THEN reason "
        f"WHEN {in_bad_list} THEN '{IN_A_BAD_LIST}' ELSE reason END AS reason "
        f"FROM staged LEFT JOIN broken USING ({ROW})"
    )


def _write(connection: duckdb.DuckDBPyConnection, out: Path, files: Sequence[str]) -> None:
    time, position = (
        f"try_cast(regexp_replace({name}, '\\.0*$', '') AS BIGINT) AS {name}"
        for name in (TIMESTAMP, POSITION)
    )
    accepted = (
        f"SELECT {', '.join(SHOWN_IDS)}, {time}, {position}, {CLICKED}::TINYINT AS {LABEL}, {ROW} "
        f"FROM judged WHERE reason IS NULL ORDER BY {ROW}"
    )
    _save(connection, accepted, out / "impressions.parquet", SHOWN_SCHEMA)
    connection.register("files", pd.DataFrame({SOURCE: range(len(files)), "file": files}))
    left_out = (
        f"SELECT {', '.join(QUARANTINED_SCHEMA.names)} FROM judged JOIN files USING ({SOURCE}) "
        f"WHERE reason NOTNULL ORDER BY {ROW}"
    )
    _save(connection, left_out, out / "impressions_quarantine.parquet", QUARANTINED_SCHEMA)


def _save(connection: duckdb.DuckDBPyConnection, sql: str, target: Path, schema: pa.Schema) -> None:
    batches = connection.sql(sql).to_arrow_reader(ROWS_AT_A_TIME)
    tables = (pa.Table.from_batches([batch]).cast(schema) for batch in batches)
    text = [name for name in schema.names if schema.field(name).type == pa.string()]
    write_parquet(tables, target, schema, use_dictionary=text)


def _counted(connection: duckdb.DuckDBPyConnection) -> ShownCounts:
    good, again = "reason IS NULL", f"reason = '{SHOWN_AGAIN_RULE.name}'"
    sql = (
        f"SELECT count(*), count(DISTINCT {IMPRESSION}), count(*) FILTER ({good}), "
        f"count(DISTINCT {IMPRESSION}) FILTER ({good}), "
        f"count(*) FILTER (NOT coalesce({good} OR {again}, false)), "
        f"count(*) FILTER ({again}) FROM judged"
    )
    row: Any = connection.execute(sql).fetchone()
    return ShownCounts(*row)
