"""Commands of the services: `hpgr up`, `hpgr down`, `hpgr worker POOL`.

Prefect is imported when a command runs. Reads and writes nothing of its own.
"""

from __future__ import annotations

from typing import Annotated

import typer


def up() -> None:
    """Start Prefect, MLflow, the recommender and a worker on this machine."""
    from host.services import up

    up()


def down() -> None:
    """Stop what `hpgr up` started; a running flow writes its checkpoint."""
    from host.services import down

    down()


def worker(
    pool: Annotated[str, typer.Argument(help="work pool whose runs this clone takes")],
) -> None:
    """Run a worker of a pool in this clone, for the server at PREFECT_API_URL."""
    from host.worker import work

    work(pool)
