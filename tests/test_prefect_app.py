"""The temporary server's transactions on SQLite."""

import asyncio
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration

from host.prefect_app import WholeTransactions

COUNT, ADD = sa.text("select count(*) from event"), sa.text("insert into event values (1)")


async def a_write_between_read_and_write(database):
    """Rows after a transaction that reads, and writes when another one has had its chance."""
    async with AsyncExitStack() as opened:
        engine = await database.engine()
        opened.push_async_callback(engine.dispose)
        async with engine.begin() as connection:
            await connection.execute(sa.text("create table event (id integer)"))
        mine, others, readers = [
            await opened.enter_async_context(await database.session(engine)) for _ in range(3)
        ]

        async def write():
            async with database.begin_transaction(others):
                await others.execute(ADD)

        async with database.begin_transaction(mine):
            await mine.execute(COUNT)
            other = asyncio.create_task(write())
            await asyncio.wait([other], timeout=1)
            await readers.execute(COUNT)  # waits for nobody
            await mine.execute(ADD)
        await other
        return (await readers.execute(COUNT)).scalar()


def interleaved(kind, folder):
    database = kind(connection_url=f"sqlite+aiosqlite:///{folder}/prefect.db")
    return asyncio.run(a_write_between_read_and_write(database))


def test_a_transaction_that_reads_first_may_write(tmp_path):
    assert interleaved(WholeTransactions, tmp_path) == 2


def test_prefects_own_may_not(tmp_path):
    """If this fails, Prefect has fixed it, and host/prefect_app.py can lose it."""
    with pytest.raises(sa.exc.OperationalError, match="database is locked"):
        interleaved(AioSqliteConfiguration, tmp_path)
