"""A stage for the drills that behaves like a training: steps, a checkpoint each, clean on SIGTERM.

It goes on for as long as the file `hold` is there, so that a drill decides when it ends. Its
checkpoints have a training's place and format, without tensors.
"""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

from hpgr.cli import _enter_stage
from hpgr.runtime import atomic_path, write_text

asked_to_stop = False


def stop(*_):
    global asked_to_stop
    asked_to_stop = True


def read_step(path):
    """Step that the training had reached; 0 without a checkpoint."""
    try:
        with safe_open(path, "numpy") as file:
            return json.loads(file.metadata()["state"])["step"]
    except FileNotFoundError:
        return 0


def main():
    _enter_stage()
    signal.signal(signal.SIGTERM, stop)
    turn = Path("turn.txt").read_text()
    checkpoint = Path(f"checkpoints/slow-{turn}/checkpoint.safetensors")
    step = read_step(checkpoint)
    print(f"slow: begins at step {step}")
    while step < 5 or Path("hold").exists():
        step += 1
        time.sleep(0.05)
        with atomic_path(checkpoint) as temporary:
            save_file({}, temporary, {"state": json.dumps({"step": step, "epoch": 0})})
        if asked_to_stop:
            print(f"slow: stopped at step {step}")
            sys.exit(143)
    write_text(Path("artifacts/slow.txt"), turn)
    shutil.rmtree(checkpoint.parent)
    print(f"slow: done at step {step}")


if __name__ == "__main__":
    main()
