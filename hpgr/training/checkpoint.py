"""Checkpoints from which a run resumes as if it had never stopped.

One safetensors file holds weights, optimizer moments and random state, its header the counters and
a checksum: no pickle, and one rename makes it atomic. The last two are kept, so that damage to one
costs minutes. The scratch folder is keyed by a hash of everything the run depends on, so a changed
parameter never resumes another run. Reads and writes the given paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hpgr.runtime import DamagedFile, scratch_prefix
from hpgr.workspace import HERE, STAGES, Workspace

if TYPE_CHECKING:
    from hpgr.config import Config

NEWEST, PREVIOUS = "checkpoint.safetensors", "previous.safetensors"
BEST = "best.safetensors"


def scratch_folder(
    stage: str, cfg: Config, inputs: Iterable[Path], workspace: Workspace = HERE
) -> Path:
    """Folder of a run, by a hash of the stage's parameters and of the bytes of the input files.

    Where the files lie does not count: a copy of the run goes on elsewhere.
    """
    settings: dict[str, Any] = {"stage": stage}
    for name in STAGES[stage].params:
        section, _, key = name.partition(".")
        values = vars(getattr(cfg, section))
        settings[name] = values[key] if key else values
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(inputs, key=lambda path: path.name):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return workspace.checkpoints / f"{stage}-{digest.hexdigest()[:16]}"


def save_atomic(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON state to `path`; an interrupted write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{scratch_prefix(path)}write")
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(state)
    try:
        save_file(whole, temporary, metadata={"state": text, "sha256": _checksum(whole, text)})
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])  # as Python itself would raise it
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and JSON state of `path`.

    Raises:
        DamagedFile: the file is not a whole safetensors file, or its checksum differs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        text = header.get("state", "{}")
        if "sha256" in header and header["sha256"] != _checksum(tensors, text):
            raise DamagedFile(path, "its checksum differs from the one written with it")
        return tensors, json.loads(text)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DamagedFile(path, error) from error


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        # A single value may have any stride; a view of its bytes needs stride 1.
        flat = tensors[name].as_strided((tensors[name].numel(),), (1,))
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_checkpoint(scratch: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write the newest checkpoint; the one before stays beside it."""
    newest = scratch / NEWEST
    coming = newest.with_name(f".coming.{newest.name}")
    save_atomic(coming, tensors, state)
    if newest.exists():
        newest.replace(scratch / PREVIOUS)
    coming.replace(newest)


def load_checkpoint(scratch: Path, *, leads: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the newest whole checkpoint, or empty dictionaries if there is none.

    A damaged one is put aside and the one before it is used. If the best weights that belong to a
    checkpoint are damaged, the run starts again.

    Args:
        scratch: folder of the run.
        leads: this process is the one that renames and prints.
    """
    for name in (NEWEST, PREVIOUS):
        path = scratch / name
        try:
            tensors, state = load_tensors(path)
            if state["best"] >= 0:
                path = scratch / BEST
                load_tensors(path)
            return tensors, state
        except FileNotFoundError:
            continue
        except DamagedFile as error:
            if leads:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                print(
                    f"WARNING: {path} is damaged ({error.why}): put aside as {aside}; "
                    "resuming from the state saved before it",
                    flush=True,
                )
    return {}, {}


def pack_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect weights, optimizer moments and random state in one flat dictionary of tensors."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def unpack_state(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Restore a state collected by `pack_state`."""
    model.load_state_dict(_below(tensors, "model."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
