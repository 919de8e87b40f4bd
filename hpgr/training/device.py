"""Where a run computes and in which precision, decided once, with the reason printed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import distributed

from hpgr.runtime import UserError


@dataclass(frozen=True)
class Device:
    """Device, autocast type and place among the processes of one run."""

    device: torch.device
    precision: torch.dtype
    rank: int
    world: int

    def autocast(self) -> AbstractContextManager:
        """The context in which the forward pass runs."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on its device, replicated (DDP) where several processes train it."""
        model = model.to(self.device)
        if self.world == 1:
            return model
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def choose_device(device: str, precision: str) -> Device:
    """Decide device and precision from `auto`, `cpu`/`cuda` and `float32`/`bfloat16`.

    Under torchrun (WORLD_SIZE > 1) the process group is created too.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError(
            "device is cuda (params.yaml), but torch sees no CUDA device; set it to auto or cpu"
        )
    kind = device if device != "auto" else ("cuda" if available else "cpu")
    reason = "asked for" if device != "auto" else ("found" if available else "no CUDA device found")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    place = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
        if kind == "cuda"
        else torch.device(kind)
    )
    if kind == "cuda":
        torch.cuda.set_device(place)
        torch.set_float32_matmul_precision("highest")  # float32 means float32, not TF32
    else:
        # Lets oneDNN take the float32 products: three times MKL's speed on AMD, and bfloat16
        # products with float32 sums on processors that have them (AMX).
        torch.set_float32_matmul_precision("medium")
        _keep_freed_memory()
    wide = torch.float32
    if precision == "bfloat16" or (precision == "auto" and kind == "cuda"):
        wide = torch.bfloat16
    name = (
        torch.cuda.get_device_name(place)
        if kind == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    if rank == 0:
        print(
            f"device {place} ({name}): {reason}; precision {str(wide).removeprefix('torch.')}: "
            + ("asked for" if precision != "auto" else f"the default on {kind}")
            + (f"; {world} processes" if world > 1 else ""),
            flush=True,
        )
    return Device(place, wide, rank, world)


def _keep_freed_memory() -> None:
    """Have the C library keep large freed blocks instead of returning them to the kernel.

    A step frees and takes hundreds of megabytes; mapping them anew each time costs page faults
    (128,000 a step before, a few after).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**26)  # larger blocks are rare, and would fragment the heap
