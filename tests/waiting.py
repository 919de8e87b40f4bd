"""Waiting in tests: for a condition, with a deadline that only a program that hangs reaches."""

import time

PATIENCE_S = 300


def until(condition, what="it", *, every_s=0.05):
    """Wait until `condition` is true and return it; else an error names what was waited for."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_S} s"
        time.sleep(every_s)
    return found
