"""Options that several commands share: each is declared once. Reads and writes nothing."""

from __future__ import annotations

from typing import Annotated

import typer

Profile = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="write the values of profiles/NAME.yaml into params.yaml"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="write one value on top; as often as needed"
    ),
]
