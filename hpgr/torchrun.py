"""Place of this process among those that train together, read from torchrun's variables.

Machines of a cluster often carry some of these variables for other programs, so only the whole set
counts and a part of it is ignored. Otherwise a process might wait for others that never start, or
leave the outputs to a first process that does not exist.
Reads the environment, writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hpgr.runtime import UserError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
REST = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Launch:
    """Place of this process among those of one run.

    `by_torchrun` is true if the whole set of variables is there; `ignored` is one line about an
    incomplete set, or None.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    by_torchrun: bool = False
    ignored: str | None = None


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the place of this process from the environment.

    Raises:
        UserError: the whole set is there, but its values contradict each other or are not numbers.
    """
    found = {name: environment[name] for name in (*NUMBERS, *REST) if environment.get(name)}
    if not found.keys() & set(NUMBERS):
        return Launch()
    missing = [name for name in (*NUMBERS, *REST) if name not in found]
    if missing:
        return Launch(
            ignored=f"{_listed(found)} ignored, as {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: one process trains alone (several: "
            "torchrun sets them all)"
        )
    number = {name: int(found[name]) if _is_number(found[name]) else -1 for name in found}
    rank, world, local_rank = (number[name] for name in NUMBERS)
    if not (0 <= rank < world and 0 <= local_rank < world and 0 < number["MASTER_PORT"] < 65536):
        raise UserError(
            f"the environment sets {_listed(found)}: expected numbers with RANK and LOCAL_RANK "
            "from 0 to below WORLD_SIZE, and a port, as torchrun sets them; start several "
            f"processes with torchrun, or one after `unset {' '.join(NUMBERS)}`"
        )
    return Launch(rank, world, local_rank, by_torchrun=True)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in found.items())
