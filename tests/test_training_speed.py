"""The training benchmark: turns, medians, and a peer in a process of its own."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.training import rectools_stepper, take_turns
from hpgr.data.log import TRAIN

SIZES = {"dim": 64, "num_blocks": 2, "num_heads": 2, "dropout": 0.2, "max_history": 200}
RATES = {"learning_rate": 0.002, "temperature": 0.05}
CFG = SimpleNamespace(model=SimpleNamespace(**SIZES), finetune=SimpleNamespace(**RATES))
ANSWERS = """
print("ready", flush=True)
events, sizes = np.load(sys.argv[2]), json.loads(sys.argv[3])
for _ in sys.stdin:
    item, user = int(events["item"].sum()), int(events["user"].max())
    answer = {"targets": [item, user, len(events["timestamp"])], "seconds": sizes}
    print(json.dumps(answer), flush=True)
"""


def python(folder, program):
    """An executable that runs `program` whatever it is asked to run."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\nimport json, sys\nimport numpy as np\n{program}")
    file.chmod(0o755)
    return file


def test_the_peer_gets_the_training_events_and_the_sizes(small_log, tmp_path):
    rows = np.asarray(small_log.split) == TRAIN
    seen = [int(small_log.item[rows].sum()), small_log.meta.num_users - 1, int(rows.sum())]
    with rectools_stepper(python(tmp_path, ANSWERS), CFG, small_log, tmp_path) as step:
        assert [step(), step()] == [(seen, json.loads(json.dumps(SIZES | RATES)))] * 2


def test_a_peer_that_cannot_start_is_reported(small_log, tmp_path):
    with (
        pytest.raises(RuntimeError, match="has ended"),
        rectools_stepper(python(tmp_path, "sys.exit(1)"), CFG, small_log, tmp_path),
    ):
        pass


def test_all_take_turns_and_the_first_step_does_not_count():
    order = []

    def steps(name, answers):
        answers = iter(answers)
        return lambda: order.append(name) or next(answers)

    found = take_turns(
        {
            "a": steps("a", [(1, 9.0), (10, 1.0), (20, 1.0), (90, 1.0)]),
            "b": steps("b", [(1, 9.0), (6, 2.0), (8, 2.0), (2, 2.0)]),
        },
        rounds=3,
    )
    assert found == {"a": 20, "b": 3} and order == ["a", "b"] * 4
