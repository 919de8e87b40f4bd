"""A project folder with the artifacts of a small untrained model, ready to be registered."""

import asyncio
import os
import shutil
import socket
import sys
from pathlib import Path

import httpx
import torch
from evaluation_log import random_log, write_arrays
from params_text import params_text
from registry_project import write_network, write_tables
from safetensors.torch import load_file, save_file

from hpgr.config import load_config
from hpgr.registry.register import register
from hpgr.registry.tracking import connect
from hpgr.runtime import TELEMETRY_OFF, write_json

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
NOW = 1_100_000_000
LIKE_WEIGHT = 2.0  # of the project's model
HISTORY = {"item_ids": ["id3", "id4"], "timestamps": [NOW - 200, NOW - 100], "actions": ["5", "1"]}
ONE = {"requests": [{"request_time": NOW, **HISTORY}], "k": 5}


def make_project(folder: Path, *, seed: int = 0) -> None:
    """Everything that registration, serving and batch scoring read; nothing is registered."""
    text = params_text("smoke")
    (folder / "params.yaml").write_text(text.replace("  port: 8000", f"  port: {free_port()}"))
    shutil.copy(ROOT / "requirements.lock", folder)
    (folder / "mlflow").mkdir()
    shutil.copy(ROOT / "mlflow" / "model_card.md.j2", folder / "mlflow")
    log = random_log(seed)
    sessions = folder / "artifacts" / "sessions"
    write_arrays(log, sessions / "arrays")
    write_tables(sessions, log)
    write_json(sessions / "stats.json", {"dropped": {"events": 5, "users": 3, "items": 0}})
    finetune = folder / "artifacts" / "finetune"
    torch.manual_seed(seed)
    write_network(finetune, log, load_config(folder / "params.yaml"))
    vary_weights(finetune, seed)
    evaluation = folder / "artifacts" / "evaluation"
    write_json(evaluation / "metrics.json", {"R1": {"hpgr": {"hr@10": 0.5}}})
    rules = {"retrieve": 50, "remove_history": True, "like_weight": LIKE_WEIGHT}
    write_json(evaluation / "rules.json", rules)
    (evaluation / "report.html").write_text("<html>report</html>")


def vary_weights(folder: Path, seed: int) -> None:
    """Weights away from their start, so that every path of the network matters.

    Not far: large weights amplify float32's rounding, and a query in another batch differs by more
    than the 1e-6 that holds for trained weights.
    """
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if value.is_floating_point():
            weights[name] = value + 0.05 * torch.randn(value.shape, generator=generator)
    save_file(weights, folder / "model.safetensors")


def register_another(seed: int) -> int:
    """Register another model (in the current folder) and return its version."""
    vary_weights(Path("artifacts/finetune"), seed)
    return int(register(load_config())["version"])


def promote(version: int) -> None:
    connect().set_registered_model_alias("hpgr", "champion", str(version))


def environment(folder: Path) -> dict[str, str]:
    """For a process of the project in `folder`, whatever the tests' own environment says."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    path = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / ".prefect"), "PATH": path}
    return {**kept, **TELEMETRY_OFF, **own}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(app, method, path, **more):
    """One request to an application in this process; an unexpected error is raised here."""

    async def go():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            reply = await client.request(method, path, **more)
            return reply.status_code, reply.json()

    return asyncio.run(go())
