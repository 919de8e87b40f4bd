"""The command `mlflow`, its server guarded by hpgr.serving.guard and in this process.

    python -m host.mlflow_server server --uvicorn-opts "--http host.mlflow_server:MLflow" ...

MLflow lets pages of every port of this machine in, and foreign ones where the path is not below
/api. It would also run its server in a child, which keeps the port when the parent is killed.
Reads HPGR_ALLOWED_HOSTS.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from uvicorn.protocols.http.h11_impl import H11Protocol

from host.settings import allowed_hosts
from hpgr.registry.tracking import escape_mlflow
from hpgr.serving.guard import Guard


class MLflow(H11Protocol):
    """uvicorn's protocol around whatever application it serves; MLflow starts uvicorn itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        escape_mlflow()
        super().__init__(*arguments, **options)
        self.app: Any = Guard(self.app, allowed_hosts())  # type: ignore[arg-type]


def main() -> None:
    """Entry point of `python -m host.mlflow_server`."""
    import mlflow.server
    from mlflow.cli import cli
    from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION

    escape_mlflow()
    if not MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get():  # else MLflow watches over two children
        mlflow.server._exec_cmd = _become  # type: ignore[assignment]
    cli(prog_name="mlflow")


def _become(command: list[str], *, extra_env: dict[str, str], **_: Any) -> NoReturn:
    """Take the place of MLflow's `_exec_cmd`, which starts the server as a child."""
    os.execve(command[0], list(map(str, command)), {**os.environ, **extra_env})


if __name__ == "__main__":
    main()
