"""Memory of a training, estimated before its first step: one that cannot fit is refused.

Weights, gradients and the optimizer's state are counted exactly, activations on two parts of a
batch, so that what grows with the batch and what does not are known apart. Backward passes need
more for a moment: the estimate is a lower bound. Reads /proc and /sys; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from hpgr.data.batches import Batch, TrainingWindows
from hpgr.runtime import UserError
from hpgr.training.device import Device
from hpgr.training.losses import logits_bytes
from hpgr.training.table_optimizer import TableAdamW

PARTS = 8  # of a batch; activations are counted on one and on two of them
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training needs on its device, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: TableAdamW,
        windows: TrainingWindows,
        loss: Callable[[nn.Module, Batch, int, int], dict[str, Tensor]],
        device: Device,
    ) -> MemoryNeed:
        """Count for a model on its device, with optimizer, loss and windows of `train`.

        The random state of the process is as before afterwards, and the model's averages too.
        """
        gradients = size([w for w in model.parameters() if w.requires_grad])
        return cls(
            weights=size([*model.parameters(), *model.buffers()]),
            # Where several processes train, gradients are summed in copies (DDP's buckets).
            gradients=gradients * (2 if device.world > 1 else 1),
            optimizer=optimizer.state_bytes(),
            activations=_activations(model, windows, loss, device),
            logits=logits_bytes(windows.log.meta.num_items, device.device),
        )

    def require(self, device: Device, section: str) -> str:
        """Return one line about the need and what is available; the weights are there already.

        Raises:
            UserError: more is needed than the device, or this process's share of the machine, has.
        """
        found, needed = available(device.device), sum(astuple(self)) - self.weights
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        listed = ", ".join(f"{name} {gib(count)}" for name, count in parts.items())
        if needed > found:
            largest = max(parts, key=lambda name: parts[name])
            fix = f"lower {section}.batch_tokens"
            if largest != "activations":
                fix = "lower model.dim, or have fewer items (sessionize.min_item_events)"
            if largest == "optimizer":
                fix += ", or lower finetune.adagrad_rows"
            raise UserError(
                f"{section} needs at least {gib(needed)} GiB more memory, but {device.device} has "
                f"{gib(found)} GiB for this process (GiB: {listed}); {fix}"
            )
        return f"at least {gib(needed)} GiB more memory needed, {gib(found)} found (GiB: {listed})"


def size(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gib(count: int) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:,.3f}"


def available(device: torch.device) -> int:
    """Return the bytes that this process can still take on the device.

    On a CPU that is the machine's, or its container's, divided by torchrun's processes there.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMINFO.is_file():  # also counts what the page cache would give back
        kib = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        free = int(kib["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
        free = min(free, int(text) - used)
    return free // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _activations(
    model: nn.Module,
    windows: TrainingWindows,
    loss: Callable[[nn.Module, Batch, int, int], dict[str, Tensor]],
    device: Device,
) -> int:
    """Bytes that the backward pass of a batch is kept for, without weights and dropout's masks."""
    numbers = windows.plan(0)[0]
    step = max(1, len(numbers) // PARTS)
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    counted = []
    devices = [device.device] if device.device.type == "cuda" else []
    was_training = model.training
    model.eval()  # no average moves
    with torch.random.fork_rng(devices):
        for part in (numbers[:step], numbers[: 2 * step]):
            kept: dict[int, int] = {}

            def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in known:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                with device.autocast():
                    graph = loss(model, windows.batch(part, 0, 0), 0, 0)
                counted.append((int(windows.length[part].sum()), sum(kept.values())))
                del graph
    model.train(was_training)
    (few, small), (more, large) = counted
    each = (large - small) / (more - few) if more > few else 0.0
    return max(large, int(large + each * (windows.batch_tokens - more)))
