"""Prefect's server as it runs here: guarded, with whole transactions.

    uvicorn --factory host.prefect_app:create_app

`make up` and compose.yaml start it so, and so does a flow without a server (host/own_server.py).
Prefect's own transactions on SQLite begin as readers. Where another connection writes between such
a transaction's first read and its first write, SQLite refuses the write at once ("database is
locked", whatever the timeout), and the server prints the traceback. Here a transaction asks for
the right to write when it begins, and waits for it. Reads HPGR_ALLOWED_HOSTS. Reads and writes
Prefect's database.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect.server.api import server
from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

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
