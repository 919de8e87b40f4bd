"""Device and precision of a run, decided once; the reason is printed.

Also the place among the processes of a run, and what they compute together.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from hpgr.model.placement import found_device
from hpgr.runtime import UserError
from hpgr.torchrun import Launch, launched

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """Device, autocast type and place among the processes of one run."""

    device: torch.device
    precision: torch.dtype
    rank: int
    world: int

    def __str__(self) -> str:
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        return f"{self.device}{name}, {str(self.precision).removeprefix('torch.')}"

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

    def own(self, parts: Iterable[T]) -> Iterator[T]:
        """Yield every `world`-th of the parts of some work, from this process's rank on.

        The parts are those of one process, so that each is rounded as there.
        """
        return islice(parts, self.rank, None, self.world)

    def summed(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of an array over the processes, the same in each.

        Exact where each element is 0 in all processes but one.
        """
        if self.world == 1:
            return values
        whole = torch.from_numpy(values).to(self.device)
        distributed.all_reduce(whole)
        found: np.ndarray = whole.cpu().numpy()
        return found

    def means(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means of scalars over the processes, in one transfer from the device."""
        numbers = torch.stack([scalar.detach() for scalar in scalars.values()])
        if self.world > 1:
            distributed.all_reduce(numbers)
            numbers /= self.world
        return dict(zip(scalars, numbers.cpu().tolist(), strict=True))

    @torch.no_grad()
    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Set float tensors to their means over the processes."""
        if self.world == 1 or not tensors:
            return
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(whole)
        parts = (whole / self.world).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def seed_step(self, seed: int, epoch: int, index: int) -> None:
        """Seed the draws of one step of this process among several.

        Each draws numbers of its own, and the same again after a restart: a checkpoint holds the
        random state of the first process alone.
        """
        drawn = np.random.SeedSequence([seed, epoch, index, self.rank])
        torch.manual_seed(int(drawn.generate_state(1, np.uint64)[0]))


ALONE = Device(torch.device("cpu"), torch.float32, rank=0, world=1)


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
        if os.environ.get("LOCAL_WORLD_SIZE") == str(launch.world):
            # torchrun keeps one store for all restarts (pytorch issue 135712), with addresses of
            # processes that are gone. The count is the same for all on one machine only.
            store, rank, world = next(distributed.rendezvous("env://"))
            store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
            distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
        else:
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
