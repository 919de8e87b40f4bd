"""Problems of the rows that break a rule, with their lines, a limited number of each kind.

Reads and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hpgr.intake.contract import ACTION, ITEM, LINE, ROW, SOURCE, TIMESTAMP, USER, Rule
from hpgr.intake.file_problems import LINES_PER_KIND, FileProblem
from hpgr.intake.time_units import FIXES, advice, kinds_of_dates, shapes

NOT_WHOLE = "timestamp is not a whole number"
DATE = "timestamp is a date"
KINDS_OF_DATES = 500


class Listing:
    """Problems of the rows of one table, a limited number of each kind."""

    def __init__(self, files: Sequence[Path], columns: dict[str, str]) -> None:
        """`files` are the rows' files by their `source`."""
        self._files, self._columns = files, columns
        self._listed: dict[str, list[FileProblem]] = {}
        self._counts: Counter[str] = Counter()
        self._dates: list[str] = []

    def add(self, frame: pd.DataFrame, found: dict[str, np.ndarray], rules: Sequence[Rule]) -> None:
        """Add the rows of `frame` that break each of `rules`; `found` gives their positions."""
        for rule in rules:
            rows = frame.iloc[found.get(rule.name, [])]
            if rule.name == NOT_WHOLE:
                found_shapes = shapes(rows[TIMESTAMP])
                for shape in found_shapes.unique():
                    kind, fix = f"timestamp is {shape}", FIXES.get(shape, rule.fix)
                    shaped = rows[found_shapes == shape]
                    self._note(replace(rule, name=kind, fix=fix), shaped)
                    if kind == DATE:
                        kinds = pd.Series([*self._dates, *shaped[TIMESTAMP]], dtype="str")
                        self._dates = kinds_of_dates(kinds)[:KINDS_OF_DATES]
            else:
                self._note(rule, rows)

    def _note(self, rule: Rule, rows: pd.DataFrame) -> None:
        listed = self._listed.setdefault(rule.name, [])
        for _, row in rows.head(LINES_PER_KIND - len(listed)).iterrows():
            listed.append(
                FileProblem(
                    file=self._files[row.get(SOURCE, 0)],
                    kind=rule.name,
                    line=int(row[LINE]),
                    column=self._columns.get(rule.column),
                    found=_found(rule, row),
                    expected=rule.expected,
                    fix=rule.fix,
                    serious=rule.gate,
                )
            )
        self._counts[rule.name] += len(rows)

    def problems(self) -> list[FileProblem]:
        """All problems in order of files and lines; the last of a kind counts those not listed."""
        if self._dates:
            how = advice(self._dates)
            self._listed[DATE] = [replace(p, fix=how) for p in self._listed[DATE]]
        for kind, listed in self._listed.items():
            if more := self._counts[kind] - len(listed):
                listed[-1] = replace(listed[-1], more=more)
        order = {file: number for number, file in enumerate(self._files)}
        found = (p for ps in self._listed.values() for p in ps)
        return sorted(found, key=lambda p: (order[p.file], p.line or 0))


def _found(rule: Rule, row: pd.Series) -> str:
    if rule.column == ROW:
        return "a copy of an earlier line: " + ", ".join(
            str(row[name]) for name in (USER, ITEM, TIMESTAMP, ACTION) if not pd.isna(row[name])
        )
    value = row[rule.column]
    return "nothing (empty, or a word such as nan or null)" if pd.isna(value) else repr(value)


def mixed(path: Path, column: str, shapes: Counter[str]) -> Iterator[FileProblem]:
    """A problem if times are written in several ways; `shapes` counts each."""
    if len(shapes) > 1:
        found = ", ".join(f"{count:,} x {shape}" for shape, count in shapes.most_common())
        yield FileProblem(
            path,
            "mixed formats of time",
            found,
            "epoch seconds throughout",
            "find out where the log changes its format, and convert the rest",
            column=column,
        )
