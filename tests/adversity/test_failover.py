"""The primary is gone and its standby is promoted: writes find it by themselves, in bounded time."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from freeloop.database import Address, Database
from freeloop.errors import DatabaseUnavailable, PoolTimeout
from freeloop.testing import FaultyNetwork, eventually
from serving import Metronome
from streaming_replica import ask, in_scope, on_tcp, replicated

ACQUIRE_TIMEOUT = 1.0
STATEMENT_TIMEOUT = 0.5
SIZE = 4


@pytest.fixture
def pair():
    """A pair of the test's own: it does not survive."""
    with replicated() as servers:
        yield servers


class Writers:
    """Writers that go on, whatever comes: when the latest write succeeded, and what else came."""

    def __init__(self, database):
        self._database = database
        self.latest = 0.0
        self.written = 0
        self.slowest = 0.0
        self.unexpected = []

    async def write(self, number):
        while True:
            started = time.monotonic()
            try:
                await self._database.execute("INSERT INTO orders VALUES ($1)", number)
            except (DatabaseUnavailable, PoolTimeout):
                await asyncio.sleep(0.01)
            except Exception as error:  # noqa: BLE001 - the test names what it did not expect
                self.unexpected.append(repr(error))
                await asyncio.sleep(0.01)
            else:
                self.written += 1
                self.latest = time.monotonic()
            self.slowest = max(self.slowest, time.monotonic() - started)


@asynccontextmanager
async def writing(database):
    await database.open()
    writers = Writers(database)
    tasks = [asyncio.create_task(writers.write(number)) for number in range(3 * SIZE)]
    try:
        await eventually(lambda: writers.written > 100)
        yield writers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=10)
        await database.close()


async def promote(standby):
    """Make the standby the primary; return when it was one."""
    assert await standby.ask("SELECT pg_promote(wait => true)")
    assert await standby.ask("SELECT NOT pg_is_in_recovery()")
    return time.monotonic()


async def crashes(primary, _network):
    await asyncio.to_thread(primary.stop)


async def falls_silent(_primary, network):
    network.stall()


@pytest.mark.parametrize(
    ("end", "within"),
    # Of a server that says nothing each connection has to find out, and half of 5 s is what a login may take.
    [(crashes, 1.0), (falls_silent, 1.0 + ACQUIRE_TIMEOUT)],
)
async def test_writes_find_the_promoted_standby(pair, end, within):
    primary, standby = pair
    await ask(primary.address, "CREATE TABLE orders (number int)")
    await standby.catch_up()
    async with FaultyNetwork.in_front_of(on_tcp(primary)) as network, Metronome() as metronome:
        hosts = f"127.0.0.1:{network.port},127.0.0.1:{standby.port}"
        address = Address(
            dsn=f"postgresql://postgres:{primary.password}@{hosts}/postgres?target_session_attrs=read-write"
        )
        database = Database(
            address,
            size=SIZE,
            acquire_timeout=ACQUIRE_TIMEOUT,
            statement_timeout=STATEMENT_TIMEOUT,
            replicas=[on_tcp(standby)],
        )
        async with writing(database) as writers:
            assert await database.fetch_value("SELECT inet_server_port()") == primary.port
            await end(primary, network)
            lost = time.monotonic()
            # Long enough for all that stood to be found dead, and for many attempts at a new connection.
            await eventually(lambda: database.idle == 0 and database.waiting > 0, within=10)
            await asyncio.sleep(2 * ACQUIRE_TIMEOUT)
            assert writers.latest < lost + STATEMENT_TIMEOUT
            promoted = await promote(standby)
            await eventually(lambda: writers.latest > promoted, within=20)
            assert writers.latest - promoted < within + 2 * metronome.late + 0.5
            before = writers.written
            await eventually(lambda: writers.written > before + 100)
            assert await database.fetch_value("SELECT inet_server_port()") == standby.port
            assert writers.unexpected == []
            # Waiting, the statement, and the sign of life that it did not give.
            assert writers.slowest < ACQUIRE_TIMEOUT + STATEMENT_TIMEOUT + 2.0 + 2 * metronome.late + 0.5


async def test_reads_go_on_while_there_is_no_primary(pair):
    primary, standby = pair
    await ask(primary.address, "CREATE TABLE orders (number int)")
    await ask(primary.address, "INSERT INTO orders VALUES (7)")
    await standby.catch_up()
    database = Database(
        on_tcp(primary, standby, parameters="?target_session_attrs=primary"),
        replicas=[on_tcp(standby)],
    )
    await database.open()
    try:
        answers, stop = [], asyncio.Event()
        background = asyncio.create_task(read_on(database, answers, stop))
        await eventually(lambda: len(answers) > 20)
        await asyncio.to_thread(primary.stop)
        with pytest.raises(DatabaseUnavailable):
            await in_scope(database.execute("INSERT INTO orders VALUES (8)"))
        before = len(answers)
        # Over several looks: none of them finds a primary.
        await eventually(lambda: len(answers) > before + 300, within=20)
        await promote(standby)
        before = len(answers)
        await eventually(lambda: len(answers) > before + 300, within=20)
        stop.set()
        await background  # which an error of any read would have ended
        assert set(answers) == {7}
        # The promoted one is no standby any more; that it answers now is since it is the primary.
        await eventually(lambda: database.replicas.all[0].trouble is not None)
        assert await database.read.fetch_value("SELECT number FROM orders") == 7
    finally:
        await database.close()


async def read_on(database, answers, stop):
    while not stop.is_set():
        answers.append(await database.read.fetch_value("SELECT number FROM orders WHERE number = 7"))
        await asyncio.sleep(0.01)
