"""How much is computed at a time: what stays in a CPU's cache, what keeps an accelerator busy."""

from __future__ import annotations

import torch

ACCELERATOR_BYTES = 1 << 28  # of one intermediate result; a backward pass holds about eight


def at_a_time(device: torch.device, *, cpu: int, bytes_each: int) -> int:
    """Pieces of one chunk.

    Args:
        device: where it is computed.
        cpu: pieces on a CPU.
        bytes_each: what one piece takes in an intermediate result.
    """
    if device.type == "cpu":
        return cpu
    return max(1, ACCELERATOR_BYTES // max(1, bytes_each))
