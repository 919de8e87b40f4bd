"""A stage for the drills that behaves like a training: steps, a checkpoint each, clean on SIGTERM.

It goes on for as long as the file `hold` is there, so that a drill decides when it ends.
"""

import json
import signal
import sys
import time
from pathlib import Path

from hpgr.cli import _enter_stage
from hpgr.runtime import write_json

CHECKPOINT = Path("checkpoints/slow.json")
asked_to_stop = False


def stop(*_):
    global asked_to_stop
    asked_to_stop = True


_enter_stage()
signal.signal(signal.SIGTERM, stop)
turn = Path("turn.txt").read_text()
state = json.loads(CHECKPOINT.read_text()) if CHECKPOINT.exists() else {}
step = state["step"] if state.get("turn") == turn else 0
print(f"slow: begins at step {step}")
while step < 5 or Path("hold").exists():
    step += 1
    time.sleep(0.05)
    write_json(CHECKPOINT, {"turn": turn, "step": step})
    if asked_to_stop:
        print(f"slow: stopped at step {step}")
        sys.exit(143)
Path("artifacts/slow.txt").write_text(turn)
CHECKPOINT.unlink()
print(f"slow: done at step {step}")
