"""Commands of the flows: `hpgr train`, `refresh`, `benchmark`; each also as `python -m flows.X`.

What `hpgr promote`, `hpgr monitor` and `hpgr recommend-all` do plainly, `python -m flows.promote`,
`flows.monitor` and `flows.recommend` do as a Prefect run, with the options that hpgr.cli declares.
Prefect is imported when a command runs. Reads and writes nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from hpgr.added_commands import as_command
from hpgr.options import Overrides, Profile
from hpgr.profiles import read_overrides


def train(profile: Profile = None, overrides: Overrides = None) -> None:
    """Train from nothing: every stage, registration and the gate, as a Prefect run."""
    _launch("train", profile=profile, overrides=read_overrides(overrides))


def refresh(
    incoming: Annotated[
        str, typer.Argument(metavar="PATH", help="file or folder of new events", show_default=False)
    ],
    profile: Profile = None,
    overrides: Overrides = None,
) -> None:
    """Take new events in and train on from the champion, as a Prefect run."""
    _launch("refresh", incoming=incoming, profile=profile, overrides=read_overrides(overrides))


def benchmark(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="of DATASET/SPLIT/MODEL/SEED; as often as needed"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="cells at once")] = 1,
) -> None:
    """Run the benchmark's cells that are not current, as a Prefect run."""
    _launch("benchmark", only=only, limit=limit)


def run_as_module(flow: str) -> NoReturn:
    """Run the command of a flow and leave the process: `python -m flows.FLOW`."""
    from hpgr import cli

    commands: dict[str, Callable[..., None]] = {
        "train": train,
        "refresh": refresh,
        "benchmark": benchmark,
        "promote": _as_run(cli.promote, "promote"),
        "monitor": _as_run(cli.monitor, "monitor"),
        "recommend": _as_run(cli.recommend_all, "recommend"),
    }
    command = as_command(commands[flow], flow)
    cli.run(lambda: command(prog_name=f"python -m flows.{flow}"))


def _as_run(declared: Callable[..., None], flow: str) -> Callable[..., None]:
    """Return a command with the options of another one that runs a flow instead."""

    @wraps(declared)
    def command(**parameters: Any) -> None:
        _launch(flow, **{k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()})

    return command


def _launch(flow: str, **parameters: Any) -> NoReturn:
    from flows.launch import launch

    launch(getattr(import_module(f"flows.{flow}"), flow), **parameters)
