"""PostgreSQL killed, frozen or gone, under load: bounded errors, and recovery without a restart."""

import asyncio
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from freeloop.database import Database, Notification
from freeloop.errors import DatabaseUnavailable, EmbeddedServerError, PoolTimeout
from freeloop.testing import OwnServer, eventually

ACQUIRE_TIMEOUT = 2.0
SIZE = 5
CALLERS = 40


@pytest.fixture
def server():
    """A server of the test's own: the session's stays untouched."""
    with OwnServer() as server:
        yield server


class Load:
    """Callers that ask without a break, and what came of it."""

    def __init__(self, database):
        self.database = database
        self.outcomes = Counter()
        self.slowest = 0.0
        self.unexpected = []

    async def call(self):
        while True:
            started = time.monotonic()
            try:
                await self.database.fetch("SELECT pg_sleep(0.001)")
                self.outcomes["ok"] += 1
            except DatabaseUnavailable:
                self.outcomes["unavailable"] += 1
                # As a client does that reads Retry-After; without it the callers only spin.
                await asyncio.sleep(0.01)
            except Exception as error:  # noqa: BLE001 - the test names what it did not expect
                self.unexpected.append(repr(error))
                await asyncio.sleep(0.01)
            finally:
                self.slowest = max(self.slowest, time.monotonic() - started)

    async def answers(self, outcome, more):
        target = self.outcomes[outcome] + more
        await eventually(lambda: self.outcomes[outcome] >= target, within=30)


@asynccontextmanager
async def under_load(database):
    await database.open()
    load = Load(database)
    tasks = [asyncio.create_task(load.call()) for _ in range(CALLERS)]
    try:
        await load.answers("ok", 100)
        yield load
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
        await database.close()


async def kill(server):
    await asyncio.to_thread(server.kill)


async def kill_for_good(server):
    await asyncio.to_thread(server.kill_with_keeper)


@pytest.mark.parametrize("end", [kill, kill_for_good])
async def test_killed_under_load_it_comes_back_through_its_server(server, end):
    database = Database(server.address, size=SIZE, acquire_timeout=ACQUIRE_TIMEOUT, server=server)
    async with under_load(database) as load:
        for round_ in range(1, 3):
            await end(server)
            await load.answers("ok", 200)
            # Once for all callers, and once more for a connection that was refused just before it was
            # up, or where it took longer than one attempt waits.
            assert round_ <= server.ensured <= 4 * round_
        assert load.outcomes["unavailable"] > 0
        assert load.unexpected == []
        assert load.slowest < ACQUIRE_TIMEOUT + 1
    assert database.in_use == 0


async def test_killed_under_load_without_a_server_port_it_recovers_once_somebody_starts_it(server):
    database = Database(server.address, size=SIZE, acquire_timeout=ACQUIRE_TIMEOUT)
    async with under_load(database) as load:
        await kill_for_good(server)
        await load.answers("unavailable", 5 * CALLERS)
        load.slowest = 0.0  # what comes now began after the end
        await load.answers("unavailable", 5 * CALLERS)
        # While it is down nobody waits for a connection that cannot come.
        assert load.slowest < 0.5
        with pytest.raises(DatabaseUnavailable, match=r"no connection to 'main' at .*Is PostgreSQL running"):
            await database.check(timeout=1)
        await server.ensure()
        await load.answers("ok", 100)
        assert load.unexpected == []
        assert load.slowest < ACQUIRE_TIMEOUT + 1


async def test_a_listener_reads_again_after_a_kill(server):
    database = Database(server.address, server=server)
    await database.open()
    try:
        async with database.listen("one") as notifications, asyncio.timeout(30):
            assert await anext(notifications) == Notification("", "")
            await kill(server)
            assert await anext(notifications) == Notification("", "")
            await database.execute("SELECT pg_notify('one', 'again')")
            assert await anext(notifications) == Notification("one", "again")
    finally:
        await database.close()


async def test_a_listener_can_be_entered_while_the_server_is_down(server):
    database = Database(server.address)
    await kill_for_good(server)
    async with database.listen("one") as notifications, asyncio.timeout(30):
        first = asyncio.create_task(anext(notifications))
        await server.ensure()
        assert await first == Notification("", "")


async def test_a_transaction_cut_by_a_kill_is_unavailable_and_leaves_nothing(server):
    database = Database(server.address, size=1, server=server)
    await database.open()
    try:
        await database.execute("CREATE TABLE numbers (n int)")
        with pytest.raises(DatabaseUnavailable):  # noqa: PT012 - the whole block is what raises
            async with database.transaction() as transaction:
                await transaction.execute("INSERT INTO numbers VALUES (1)")
                await kill(server)
                # A backend notices the end of its server when it waits next, and could still commit.
                await eventually(lambda: database.in_use == 0)
                await transaction.execute("INSERT INTO numbers VALUES (2)")
        assert await read_once_back(database) == 0
    finally:
        await database.close()


async def read_once_back(database):
    """The server that comes back may take longer than a caller waits for a connection."""
    async with asyncio.timeout(30):
        while True:
            with suppress(DatabaseUnavailable, PoolTimeout):
                return await database.fetch_value("SELECT count(*) FROM numbers")
            await asyncio.sleep(0.02)


class Broken:
    """A server that cannot be started again."""

    def __init__(self, *, seconds=0.0):
        self.ensured = 0
        self._seconds = seconds

    async def ensure(self):
        self.ensured += 1
        await asyncio.sleep(self._seconds)
        raise EmbeddedServerError("the disk is full")


async def test_a_server_that_cannot_be_started_is_not_started_by_every_caller(server):
    broken = Broken()
    database = Database(server.address, size=SIZE, acquire_timeout=ACQUIRE_TIMEOUT, server=broken)
    await database.open()
    try:
        await kill_for_good(server)
        # The connections that stood are noticed as broken first.
        await eventually(lambda: database.idle == 0)
        started = time.monotonic()
        errors = await asyncio.gather(
            *(database.fetch("SELECT 1") for _ in range(100)), return_exceptions=True
        )
        assert time.monotonic() - started < ACQUIRE_TIMEOUT
        assert {type(error) for error in errors} == {DatabaseUnavailable}
        assert any("the disk is full" in str(error) for error in errors)
        assert 1 <= broken.ensured <= 2
        await server.ensure()
        assert await database.fetch_value("SELECT 1") == 1
    finally:
        await database.close()


async def test_a_slow_start_is_waited_for_no_longer_than_for_a_connection(server):
    broken = Broken(seconds=20)
    database = Database(server.address, size=2, acquire_timeout=0.3, server=broken)
    await database.open()
    try:
        await kill_for_good(server)
        await eventually(lambda: database.idle == 0)
        started = time.monotonic()
        errors = await asyncio.gather(
            *(database.fetch("SELECT 1") for _ in range(20)), return_exceptions=True
        )
        assert time.monotonic() - started < 1.5
        # Not PoolTimeout: more connections would not have helped.
        assert {type(error) for error in errors} == {DatabaseUnavailable}
        assert broken.ensured == 1
    finally:
        await database.close()


async def test_closing_ends_the_wait_for_a_slow_start(server):
    broken = Broken(seconds=20)
    database = Database(server.address, size=2, acquire_timeout=10, server=broken)
    await database.open()
    await kill_for_good(server)
    await eventually(lambda: database.idle == 0)
    waiter = asyncio.create_task(database.fetch("SELECT 1"))
    await eventually(lambda: broken.ensured == 1)
    async with asyncio.timeout(3):
        await database.close()
        with pytest.raises(DatabaseUnavailable, match="closing"):
            await waiter


def take_place(address):
    """Listen where the server was, and never answer, as behind a firewall that drops."""
    path = Path(f"{address.host}/.s.PGSQL.{address.port or 5432}")
    path.unlink(missing_ok=True)
    taken = socket.socket(socket.AF_UNIX)
    taken.bind(str(path))
    taken.listen(100)
    return taken


async def test_a_server_without_an_answer_costs_the_acquire_timeout_once(server):
    database = Database(server.address, size=2, acquire_timeout=1.2)
    await database.open()
    try:
        await kill_for_good(server)
        await eventually(lambda: database.idle == 0)
        with await asyncio.to_thread(take_place, server.address):
            started = time.monotonic()
            errors = await asyncio.gather(
                *(database.fetch("SELECT 1") for _ in range(20)), return_exceptions=True
            )
            assert time.monotonic() - started < 2.2
        assert {type(error) for error in errors} == {DatabaseUnavailable}
        assert any("no answer in time" in str(error) for error in errors)
    finally:
        await database.close()
