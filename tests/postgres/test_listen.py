"""Notifications: order, the sign after a (re)connect, and connections that die quietly or loudly."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from freeloop.database import Notification
from freeloop.database.connect import Connector
from freeloop.database.listen import Listener
from freeloop.testing import eventually

MISSED = Notification("", "")
LISTENERS = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"


async def following(notifications):
    async with asyncio.timeout(10):
        return await anext(notifications)


@asynccontextmanager
async def proxy(address):
    """A wire to PostgreSQL that can go silent without closing."""
    writers, silent = [], set()

    async def serve(reader, writer):
        up_reader, up_writer = await asyncio.open_unix_connection(
            f"{address.host}/.s.PGSQL.{address.port or 5432}"
        )
        writers.extend([writer, up_writer])
        number = len(writers)

        async def pump(source, target):
            while data := await source.read(65536):
                if number not in silent:
                    target.write(data)

        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, up_writer))
            group.create_task(pump(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    def go_silent():
        silent.update(range(len(writers) + 1))

    try:
        yield server.sockets[0].getsockname()[1], go_silent
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_notifications_come_in_order_after_the_sign_to_read_again(database):
    async with database.listen("one", "Two; words") as notifications:
        assert await following(notifications) == MISSED
        for number in range(20):
            await database.execute("SELECT pg_notify('one', $1)", str(number))
        await database.execute("SELECT pg_notify('Two; words', 'x')")
        await database.execute("SELECT pg_notify('three', 'not ours')")
        await database.execute("SELECT pg_notify('one', 'last')")
        got = [await following(notifications) for _ in range(22)]
    assert got == [
        *(Notification("one", str(number)) for number in range(20)),
        Notification("Two; words", "x"),
        Notification("one", "last"),
    ]


async def test_it_takes_no_connection_of_the_pool_and_leaves_none_behind(database):
    async with database.listen("one"):
        assert database.in_use == 0
        assert await database.fetch_value("SELECT count(*) " + LISTENERS) == 1

    async def gone():
        return await database.fetch_value("SELECT count(*) " + LISTENERS) == 0

    await eventually(gone)


async def test_a_connection_that_the_server_ends_comes_back_with_a_new_sign(database):
    async with database.listen("one") as notifications:
        assert await following(notifications) == MISSED
        for round_ in range(2):
            await database.execute("SELECT pg_terminate_backend(pid) " + LISTENERS)
            assert await following(notifications) == MISSED
            await database.execute("SELECT pg_notify('one', $1)", str(round_))
            assert await following(notifications) == Notification("one", str(round_))


async def test_a_cancelled_reader_loses_nothing(database):
    async with database.listen("one") as notifications:
        assert await following(notifications) == MISSED
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(notifications)
        await database.execute("SELECT pg_notify('one', 'kept')")
        assert await following(notifications) == Notification("one", "kept")


async def test_a_half_dead_connection_is_noticed_and_replaced(address, database):
    async with proxy(address) as (port, go_silent):
        connector = Connector(
            type(address)(
                host="127.0.0.1",
                port=port,
                user=address.user,
                database=address.database,
                password=address.password,
            )
        )
        listener = Listener(connector, ["one"], health_interval=0.2, health_timeout=0.2)
        async with listener as notifications:
            assert await following(notifications) == MISSED
            go_silent()
            assert await following(notifications) == MISSED
            await database.execute("SELECT pg_notify('one', 'alive')")
            assert await following(notifications) == Notification("one", "alive")


async def test_by_default_a_half_dead_connection_lasts_less_than_thirty_seconds(address):
    listener = Listener(Connector(address), ["one"])
    assert listener._health_interval + listener._health_timeout < 30


async def test_a_reader_too_slow_for_the_buffer_is_told_to_read_again(database):
    async with database.listen("one") as notifications:
        await database.execute("SELECT pg_notify('one', n::text) FROM generate_series(1, 3000) AS n")
        await eventually(lambda: len(notifications._arrived) >= 900)
        await database.execute("SELECT pg_notify('one', 'last')")
        got = []
        while not got or got[-1].payload != "last":
            got.append(await following(notifications))
    assert got[0] == MISSED
    assert len(got) <= 1026


async def test_leaving_wakes_a_reader_that_waits(database):
    async with database.listen("one") as notifications:
        assert await following(notifications) == MISSED
        reader = asyncio.create_task(anext(notifications, None))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await reader is None
