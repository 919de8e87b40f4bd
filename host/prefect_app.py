"""Prefect's server as it runs here: guarded, with whole transactions.

    uvicorn --factory host.prefect_app:create_app

`make up` and compose.yaml start it so, and so does a flow without a server (`use_own_server`).
Prefect's own transactions on SQLite begin as readers. Where another connection writes between such
a transaction's first read and its first write, SQLite refuses the write at once ("database is
locked", whatever the timeout), and the server prints the traceback. Here a transaction asks for
the right to write when it begins, and waits for it. Reads HPGR_ALLOWED_HOSTS. Reads and writes
Prefect's database.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from prefect.server.api import server
from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, get_current_settings

from host.prefect_server import TEMPORARY
from host.settings import allowed_hosts
from hpgr.serving.guard import Guard

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction
    from starlette.types import ASGIApp


class WholeTransactions(AioSqliteConfiguration):
    """SQLite whose transactions hold the write lock from beginning to end."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """As Prefect's with `with_for_update`, but sessions inside it may read meanwhile."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # begins
            outer = SQLITE_BEGIN_MODE.set(None)
            try:
                yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(outer)


def create_app() -> ASGIApp:
    """Build the server's application, websockets included, for uvicorn."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        set_database_config(WholeTransactions(connection_url=url))
    return Guard(server.create_app(final=True), allowed_hosts())


def use_own_server() -> None:
    """Have Prefect start `create_app` where it would start its own temporary server."""
    server.SubprocessASGIServer._run_uvicorn_command = _start  # type: ignore


def _start(temporary: server.SubprocessASGIServer) -> subprocess.Popen[Any]:
    """Prefect's call, with another application."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "host.prefect_app:create_app"]
    options = ["--host", "127.0.0.1", "--port", str(temporary.port), "--log-level", "error"]
    marks = {"PREFECT_UI_ENABLED": "0", TEMPORARY: "1", "PREFECT__SERVER_FINAL": "1"}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return subprocess.Popen([*command, *options], env={**os.environ, **marks, **settings})
