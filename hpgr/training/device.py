"""Device and precision of a run, decided once; the reason is printed."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import distributed

from hpgr.model.placement import found_device
from hpgr.runtime import UserError
from hpgr.torchrun import Launch, launched


@dataclass(frozen=True)
class Device:
    """Device, autocast type and place among the processes of one run."""

    device: torch.device
    precision: torch.dtype
    rank: int
    world: int

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the forward pass runs."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Move the model to its device; replicate it (DDP) if several processes train it."""
        model = model.to(self.device)
        if self.world == 1:
            return model
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def choose_device(device: str, precision: str) -> Device:
    """Decide device and precision from `auto`, `cpu`/`cuda` and `float32`/`bfloat16`.

    Under torchrun with several processes the process group is created too.

    Raises:
        UserError: CUDA is requested, but missing or not enough for every process of a machine; the
            variables of torchrun contradict each other; the other processes cannot be reached.
    """
    kind = found_device(device)
    found = "found" if kind == "cuda" else "no CUDA device found"
    reason = found if device == "auto" else "asked for"
    launch = launched()
    place = torch.device(kind, launch.local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if launch.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK is {launch.local_rank}, but torch sees {torch.cuda.device_count()} "
                "CUDA devices here; start at most that many processes on this machine"
            )
        torch.cuda.set_device(place)
        torch.set_float32_matmul_precision("highest")  # float32 means float32, not TF32
    else:
        # Lets oneDNN compute the float32 products: three times MKL's speed on AMD, and bfloat16
        # products with float32 sums on processors that have them (AMX).
        torch.set_float32_matmul_precision("medium")
        _keep_freed_memory()
    if launch.world > 1 and not distributed.is_initialized():
        _join(launch, "nccl" if kind == "cuda" else "gloo")
    wide = torch.float32
    native = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" or (precision == "auto" and native):
        wide = torch.bfloat16
    name = (
        torch.cuda.get_device_name(place)
        if kind == "cuda"
        else f"{torch.get_num_threads()} threads"
    )
    if launch.ignored:
        print(launch.ignored, flush=True)
    if launch.rank == 0:
        print(
            f"device {place} ({name}): {reason}; precision {str(wide).removeprefix('torch.')}: "
            + ("asked for" if precision != "auto" else f"the default on {kind}")
            + (f"; {launch.world} processes" if launch.world > 1 else ""),
            flush=True,
        )
    return Device(place, wide, launch.rank, launch.world)


def _join(launch: Launch, backend: str) -> None:
    """Join the process group of the run."""
    try:
        distributed.init_process_group(backend)
    except distributed.DistError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {launch.rank} of {launch.world} cannot reach the others at MASTER_ADDR and "
            f"MASTER_PORT ({reason}); start them all with torchrun, or unset RANK, WORLD_SIZE and "
            "LOCAL_RANK to train with one"
        ) from error


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
