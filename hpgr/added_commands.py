"""Commands that packages above the library add to `hpgr`: entry points of the group hpgr.commands.

The library knows nothing of Prefect; pyproject.toml lists the commands of the flows and services.
Reads the metadata of the installed packages; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

GROUP = "hpgr.commands"
PANEL = "Flows and services"


class Commands(TyperGroup):
    """The commands of `hpgr`, and the added ones, which are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, the added ones last."""
        return [*super().list_commands(ctx), *_added()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a name; None if there is none."""
        found = super().get_command(ctx, cmd_name)
        if found is None and (point := _added().get(cmd_name)):
            return as_command(point.load(), cmd_name)
        return found


def as_command(function: Callable[..., Any], name: str) -> Any:
    """Return a command whose options are the annotated parameters of a function."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, rich_help_panel=PANEL)(function)
    return typer.main.get_command(app)


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
