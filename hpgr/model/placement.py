"""The device of a network, and the size of one chunk of work on it."""

from __future__ import annotations

import torch

from hpgr.runtime import UserError

ACCELERATOR_BYTES = 1 << 28  # of one intermediate result; a backward pass holds about eight


def found_device(name: str) -> str:
    """Return the device that `name` (auto, cpu or cuda) means on this machine: cpu or cuda.

    Raises:
        UserError: CUDA is requested, but torch sees no CUDA device.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "device is cuda (params.yaml), but torch sees no CUDA device; set it to auto or cpu"
        )
    if name == "auto":
        return "cuda" if available else "cpu"
    return name


def at_a_time(device: torch.device, *, cpu: int, bytes_each: int) -> int:
    """Return the pieces of one chunk: few enough for a CPU's cache, enough for an accelerator.

    Args:
        device: of the computation.
        cpu: pieces on a CPU.
        bytes_each: size of one piece in an intermediate result.
    """
    if device.type == "cpu":
        return cpu
    return max(1, ACCELERATOR_BYTES // max(1, bytes_each))
