"""The scan for suspects leaves out no row that breaks a rule, and nothing else depends on it."""

from __future__ import annotations

import random
import time

import numpy as np
import pandas as pd
import pytest
from sample_log import config

from hpgr.intake import suspects
from hpgr.intake.contract import EVENTS, ROW, row_rules
from hpgr.intake.expectations import Expectations
from hpgr.intake.screening import check_rows
from hpgr.intake.staging import stage

NOW = int(time.time())
TIMES = [
    *("1600000000", "1600000000.0", "1600000000.", "01600000000", "+1600000000", " 1600000000"),
    *("1600000000 ", "1.6e9", "0x5F5E1000", "1_600_000_000", "1600000000.5", "1600000000000"),
    *("-5", "-0", "0", "", "nan", "2020-09-13", "٣٤٥", "9" * 40, "1600000001", "1600000002"),
    *(str(NOW + days * 86400) for days in (-1, 2, 9)),
]
IDS = ["u1", "u2", "U1", " u1", "u1 ", "7", "7.0", "ü"]
RAGGED = ["3 fields instead of 4"]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Every time with sound ids, and as many rows of anything."""
    draw = random.Random(0)
    plain = [("u1", "i1", time, "5", None) for time in TIMES for _ in range(4)]
    strange = [
        (
            draw.choice([*IDS, None]),
            draw.choice([*IDS, "i1", None]),
            draw.choice([*TIMES, None]),
            draw.choice(["5", "4", None]),
            draw.choice([*RAGGED, *[None] * 9]),
        )
        for _ in range(len(plain))
    ]
    names = ["user_id", "item_id", "timestamp", "action", "ragged"]
    frame = pd.DataFrame(plain + strange, columns=names, dtype="str")
    numbers = {"row": np.arange(len(frame)), "part": 0, "source": 0, "line": np.arange(len(frame))}
    return frame.assign(session_id=pd.Series(None, frame.index, dtype="str"), **numbers)


@pytest.mark.parametrize("items", [None, pd.DataFrame({"item_id": ["i1", "u1", "7"]})])
def test_the_same_rows_break_the_same_rules(rows, items, tmp_path, monkeypatch):
    staged, limits = tmp_path / "staged.parquet", config().validate_
    stage(iter([rows]), staged)
    monkeypatch.setattr(time, "time", lambda: NOW)
    found, tallies, judged = [], [], []
    for sample, given in ((0, None), (0, limits), (2, limits)):
        monkeypatch.setattr(suspects, "SAMPLE", sample)
        expectations = Expectations()
        broken: dict[str, set[int]] = {}
        seen = 0
        for chunk, places in check_rows(
            staged, row_rules(limits), expectations, 100, items, limits=given
        ):
            seen += len(chunk)
            for name, at in places.items():
                broken.setdefault(name, set()).update(chunk[ROW].iloc[at])
        found.append(broken)
        tallies.append(
            [(t.checked, t.missing, t.broken, t.examples) for t in expectations.tallies[EVENTS]]
        )
        judged.append(seen)
    assert found[0] and found[1] == found[0] == found[2]
    assert tallies[1] == tallies[0] == tallies[2]
    assert judged[1] < judged[2] < judged[0] == len(rows)
