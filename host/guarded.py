"""The servers of `make up` behind hpgr.serving.guard: their own pages and programs, nobody else.

    uvicorn --factory host.guarded:prefect                 Prefect's server
    python -m host.guarded server --uvicorn-opts "--http host.guarded:MLflow --ws none" ...
                                                            MLflow's command and its server

Prefect looks at no Host; MLflow lets pages of every port of this machine in, and foreign ones where
the path is not below /api. HPGR_ALLOWED_HOSTS names further hosts, such as a proxy's. Reads it.
"""

from __future__ import annotations

import os
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from hpgr.registry.tracking import escape_mlflow
from hpgr.serving.guard import Guard

HOSTS = "HPGR_ALLOWED_HOSTS"  # names without port, parted by commas


def allowed_hosts() -> list[str]:
    """What HPGR_ALLOWED_HOSTS names."""
    return [host.strip() for host in os.environ.get(HOSTS, "").split(",") if host.strip()]


def prefect() -> ASGIApp:
    """Prefect's application, websockets included."""
    from prefect.server.api.server import create_app

    from host.temporary_server import use_whole_transactions

    use_whole_transactions()
    return Guard(create_app(final=True), allowed_hosts())


class MLflow(H11Protocol):
    """uvicorn's protocol around whatever application it serves; MLflow starts uvicorn itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        escape_mlflow()
        super().__init__(*arguments, **options)
        self.app: Any = Guard(self.app, allowed_hosts())  # type: ignore[arg-type]


def main() -> None:
    """Entry point of `python -m host.guarded`: the command `mlflow`."""
    from mlflow.cli import cli

    escape_mlflow()
    cli(prog_name="mlflow")


if __name__ == "__main__":
    main()
