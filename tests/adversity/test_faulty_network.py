"""The wire between the pool and PostgreSQL fails: no wrong row, no lost write, no stuck connection."""

import asyncio
import hashlib
import os
import random
import socket
import time
from contextlib import asynccontextmanager, nullcontext, suppress

import aiohttp
import pytest
from asyncpg import DivisionByZeroError, InFailedSQLTransactionError, UniqueViolationError
from fastapi import FastAPI

from freeloop.database import Database
from freeloop.errors import DatabaseUnavailable, PoolTimeout, StatementTimeout
from freeloop.gate.declare import priority
from freeloop.testing import FaultyNetwork, OwnServer, eventually, plan_faults
from serving import Metronome, kitted, served

SEEDS = 500
# How many seeds run at the same time; what one of them does hangs on its seed only.
AT_ONCE = 6
SIZE = 3
ACQUIRE_TIMEOUT = 0.5
STATEMENT_TIMEOUT = 0.4
# After the statement: its cancellation, the rollback and the release are bounded too.
CLEAN_UP = 2.0 + 5.0
RETURN = 1.0

STORED = "SELECT seed, number, payload, checksum FROM facts WHERE seed = $1"
DOCUMENTED = (DatabaseUnavailable, PoolTimeout, StatementTimeout)


def checksum(*parts):
    return hashlib.md5(":".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def dice_of(name):
    return random.Random(name)  # noqa: S311 - it has to be repeatable, not secret


@pytest.fixture
async def witness(address):
    """The same database by a good way."""
    database = Database(address, name="witness")
    await database.open()
    yield database
    await database.close()


class Workload:
    """Writers and readers of one seed, and what each call came to."""

    def __init__(self, seed, database):
        self.seed = seed
        self.database = database
        self.sent = {}
        self.groups = []
        self.acknowledged = set()
        self.errors = []
        self.answers = 0

    async def run(self):
        await asyncio.gather(*(self._work(dice_of(f"{self.seed}/task {task}")) for task in range(6)))

    async def _work(self, dice):
        # COMMIT is where most can be lost, and few faults meet it: blocks are asked for twice as often.
        writes = (self._insert, self._insert_many, self._insert_block, self._insert_block)
        calls = (*writes, self._ask, self._ask_many, self._read)
        for _ in range(5):
            call = dice.choice(calls)
            # One call in six is cancelled, as by a caller that went away.
            patience = dice.random() * 0.02 if dice.random() < 1 / 6 else None
            started = time.monotonic()
            try:
                async with asyncio.timeout(patience):
                    await call(dice)
            except TimeoutError:
                assert patience is not None, f"{call.__name__} raised a bare TimeoutError"
            except DOCUMENTED as error:
                self.errors.append(error)
            bound = ACQUIRE_TIMEOUT + 4 * STATEMENT_TIMEOUT + CLEAN_UP
            assert time.monotonic() - started < bound, f"{call.__name__} took longer than {bound} s"

    def _make_rows(self, dice, count):
        rows = []
        for _ in range(count):
            number = len(self.sent)
            # Some rows take several reads of the wire, so that faults come into their middle.
            payload = dice.choice(("", "測試", "x" * dice.randrange(3000))) + str(dice.random())
            self.sent[number] = payload
            rows.append((self.seed, number, payload, checksum(self.seed, number, payload)))
        self.groups.append({row[1] for row in rows})
        return rows

    INSERT = "INSERT INTO facts (seed, number, payload, checksum) VALUES ($1, $2, $3, $4)"

    async def _insert(self, dice):
        (row,) = self._make_rows(dice, 1)
        assert await self.database.execute(self.INSERT, *row) == "INSERT 0 1"
        self.acknowledged.add(row[1])

    async def _insert_many(self, dice):
        rows = self._make_rows(dice, 3)
        await self.database.execute_many(self.INSERT, rows)
        self.acknowledged.update(row[1] for row in rows)

    async def _insert_block(self, dice):
        rows = self._make_rows(dice, 2)
        async with self.database.transaction() as transaction:
            for row in rows:
                await transaction.execute(self.INSERT, *row)
        self.acknowledged.update(row[1] for row in rows)

    async def _ask(self, dice):
        question = dice.random()
        answer = await self.database.fetch_row(
            "SELECT $1::float8 AS question, md5($1::text) AS digest", question
        )
        assert answer["question"] == question, "the answer belongs to another question"
        assert answer["digest"] == checksum(repr(question)), "a wrong answer"
        self.answers += 1

    async def _ask_many(self, dice):
        question, count = dice.randrange(10**6), dice.randrange(50)
        rows = await self.database.fetch(
            "SELECT $1::int AS question, n, md5(concat_ws(':', $1::int, n)) AS digest"
            " FROM generate_series(1, $2::int) AS n",
            question,
            count,
        )
        assert [tuple(row) for row in rows] == [
            (question, n, checksum(question, n)) for n in range(1, count + 1)
        ], "rows of another question, or not all of them"
        self.answers += 1

    async def _read(self, dice):
        if not self.acknowledged:
            return
        number = dice.choice(sorted(self.acknowledged))
        row = await self.database.fetch_row(
            "SELECT seed, number, payload, checksum FROM facts WHERE seed = $1 AND number = $2",
            self.seed,
            number,
        )
        assert row is not None, f"row {number} was acknowledged and is lost"
        self._check_row(row)
        self.answers += 1

    def _check_row(self, row):
        number, payload = row["number"], row["payload"]
        assert row["seed"] == self.seed, "a row of another question"
        assert self.sent.get(number) == payload, f"row {number} was never sent like this"
        assert row["checksum"] == checksum(self.seed, number, payload), f"row {number} is damaged"

    def check(self, rows):
        """Compare what the server holds in the end with what was sent and acknowledged."""
        for row in rows:
            self._check_row(row)
        numbers = [row["number"] for row in rows]
        assert len(numbers) == len(set(numbers)), "a row was written twice"
        assert self.acknowledged <= set(numbers), "an acknowledged write is lost"
        for group in self.groups:
            assert group <= set(numbers) or group.isdisjoint(numbers), "half of a unit of work was written"


async def hold_all(database, size):
    """Lend all connections at the same time, and get an answer over each."""
    all_lent = asyncio.Barrier(size)

    async def hold(number):
        async with database.transaction() as transaction:
            assert await transaction.fetch_value("SELECT $1::int", number) == number
            await all_lent.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(size):
            group.create_task(hold(number))


async def until_whole(database, size):
    """Ask until the pool is at full size: what broke unseen may cost one failure, and no more time."""
    whole = False
    while not whole:
        try:
            await hold_all(database, size)
            whole = True
        except* DOCUMENTED:
            pass


class Pace:
    """How long a new pool takes by a good way to be whole, which a busy machine adds to every recovery."""

    def __init__(self, address):
        self._address = address
        self._samples = []

    async def __aenter__(self):
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait([self._task], timeout=10)

    async def _sample(self):
        while True:
            started = time.monotonic()
            database = Database(self._address, size=SIZE, acquire_timeout=10)
            await database.open()
            await hold_all(database, SIZE)
            self._samples.append((started, time.monotonic()))
            await database.close()
            await asyncio.sleep(0.2)

    def longest(self, *, since):
        """Return the seconds of the longest one that ended after ``since``, or of the latest."""
        return max(end - start for start, end in self._samples if end >= since or end == self._samples[-1][1])


async def run_seed(seed, address, witness, pace):
    faults = plan_faults(seed, share=0.6, after=6000, stall=None if seed % 2 else 0.1)

    def plan(number):
        # The first connection proves the address, and a stalled login takes long: only some have one.
        return faults(number) if number or seed % 10 == 0 else ()

    async with FaultyNetwork.in_front_of(address, plan=plan) as network:
        database = Database(
            network.reach(address),
            size=SIZE,
            acquire_timeout=ACQUIRE_TIMEOUT,
            statement_timeout=STATEMENT_TIMEOUT,
        )
        await database.open(timeout=20)
        try:
            work = Workload(seed, database)
            breaker = asyncio.create_task(break_by_call(network, dice_of(f"{seed}/calls")))
            try:
                async with asyncio.timeout(60):
                    await work.run()
            finally:
                breaker.cancel()
            await network.heal()
            started = time.monotonic()
            async with asyncio.timeout(10 * RETURN):
                await until_whole(database, SIZE)
            took = time.monotonic() - started
            assert took < RETURN + pace.longest(since=started), f"the pool was whole only after {took:.3g} s"
            await eventually(lambda: database.in_use == 0)
            assert database.waiting == 0
        finally:
            await database.close()
    work.check(await witness.fetch(STORED, seed))
    return work


async def break_by_call(network, dice):
    """Add what strikes all connections at the same time, at moments of its own."""
    while True:
        await asyncio.sleep(dice.random() * 0.3)
        match dice.randrange(6):
            case 0:
                network.cut(reset=dice.random() < 0.5)
            case 1:
                network.truncate(dice.randrange(200), toward=dice.choice(("client", "server")))
            case 2:
                network.refuse()
                await asyncio.sleep(dice.random() * 0.05)
                await network.accept()
            case 3:
                network.split(dice.choice((1, 3, 50)))
            case 4:
                network.delay(dice.random() * 0.01)
            case 5:
                network.delay(0)
                network.split(None)


async def test_five_hundred_seeds_of_faults_lose_nothing_and_leave_nothing_stuck(address, witness):
    await witness.execute("CREATE TABLE facts (seed int, number int, payload text, checksum text)")
    await witness.execute("CREATE INDEX ON facts (seed, number)")
    first = int(os.environ.get("TEST_FIRST_SEED", "0"))
    seeds = iter(range(first, first + int(os.environ.get("TEST_SEEDS", SEEDS))))
    done = []

    async def run():
        for seed in seeds:
            try:
                done.append(await run_seed(seed, address, witness, pace))
            except BaseException as error:
                error.add_note(f"seed {seed}: TEST_FIRST_SEED={seed} TEST_SEEDS=1 runs it alone")
                raise

    async with Pace(address) as pace, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(run())
    for work in done:
        # What the server had been told before the wire broke may have come to its end there since.
        work.check(await witness.fetch(STORED, work.seed))
    assert len(done) > 0
    # The faults were felt, and most of the work was done all the same.
    errors = {type(error) for work in done for error in work.errors}
    assert errors == set(DOCUMENTED) or len(done) < SEEDS
    assert sum(work.answers for work in done) > len(done)
    assert sum(len(work.acknowledged) for work in done) > len(done)


@asynccontextmanager
async def reached(network, address, **options):
    """A database by way of the network."""
    database = Database(network.reach(address), **options)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class Load:
    """Clients of an app that ask without a break: when each call began and ended, and its status."""

    PATIENCE = 30

    def __init__(self, client):
        self._client = client
        self.calls = []

    async def call(self):
        while True:
            started = time.monotonic()
            async with self._client.get("/fact", timeout=aiohttp.ClientTimeout(self.PATIENCE)) as answer:
                self.calls.append((started, time.monotonic(), answer.status))
                retry_after = answer.headers.get("Retry-After")
                assert answer.status != 503 or retry_after is not None
            if answer.status != 200:
                await asyncio.sleep(0.02)

    def statuses(self, *, since=0.0):
        return [status for started, _, status in self.calls if started >= since]

    async def answers(self, status, more):
        begun = time.monotonic()
        await eventually(lambda: self.statuses(since=begun).count(status) >= more, within=self.PATIENCE)


@asynccontextmanager
async def under_load(database, clients=20):
    app = FastAPI()

    @app.get("/fact")
    @priority("critical")  # the gate sheds none of it: what is looked at is the database
    async def fact():
        return await database.fetch_value("SELECT 1")

    kitted(app)
    async with served(app, lifespan="on") as (client, _):
        load = Load(client)
        tasks = [asyncio.create_task(load.call()) for _ in range(clients)]
        try:
            await load.answers(200, 5 * clients)
            yield load
            for task in tasks:
                assert not task.done(), task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=10)


@asynccontextmanager
async def refused(network, _server):
    network.refuse()
    network.cut()
    yield
    await network.heal()


@asynccontextmanager
async def silent(network, _server):
    network.stall()
    yield
    await network.heal()


@asynccontextmanager
async def silent_and_forgotten(network, _server):
    network.stall()
    yield
    await network.heal(standing=False)


@asynccontextmanager
async def restarted(_network, server):
    await asyncio.to_thread(server.kill_with_keeper)
    yield
    await server.ensure()


@pytest.fixture
def own_server():
    """A server of the test's own: the session's stays untouched."""
    with OwnServer() as server:
        yield server


@pytest.mark.parametrize(
    ("outage", "seconds"),
    # A network that is cut says nothing; 10 s is what the longest retry of TCP needs to notice.
    [(refused, 1.5), (silent, 2), (silent_and_forgotten, 2), (restarted, 1.5), (silent_and_forgotten, 10)],
)
async def test_an_outage_under_load_is_503_in_bounded_time_and_over_within_a_second(
    own_server, outage, seconds
):
    acquire, statement, size = 1.0, 1.0, 5
    async with (
        FaultyNetwork.in_front_of(own_server.address) as network,
        reached(
            network, own_server.address, size=size, acquire_timeout=acquire, statement_timeout=statement
        ) as database,
        under_load(database) as load,
        Metronome() as metronome,
    ):
        began = time.monotonic()
        async with outage(network, own_server):
            await asyncio.sleep(seconds)
            silent_to_the_end = load.statuses(since=began + seconds / 2)
        returned = time.monotonic()
        await asyncio.sleep(RETURN + metronome.late)
        settled = time.monotonic()
        await load.answers(200, 100)
        assert 200 in load.statuses(since=returned)
        assert set(load.statuses(since=settled)) == {200}
        assert set(silent_to_the_end) <= {503}
        assert load.statuses(since=began).count(503) > 0
        # Only where the wire is back before the server was given up can it say that a statement was slow.
        assert load.statuses().count(504) <= (size if outage is silent else 0)
        assert set(load.statuses()) <= {200, 503, 504}
        # Waiting, the statement, its cancellation, and the loop of a busy machine.
        bound = acquire + statement + 2.0 + metronome.late * 2 + 0.5
        assert max(ended - started for started, ended, _ in load.calls) < bound
        await until_whole(database, size)


async def test_a_half_dead_connection_serves_at_most_once_more(address):
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=SIZE, acquire_timeout=5, statement_timeout=0.3) as database,
    ):

        async def hold(all_lent):
            async with database.transaction() as transaction:
                await all_lent.wait()
                return await transaction.fetch_value("SELECT pg_backend_pid()")

        async def pids():
            all_lent = asyncio.Barrier(SIZE)
            return set(await asyncio.gather(*(hold(all_lent) for _ in range(SIZE))))

        before = await pids()
        assert len(before) == SIZE
        network.stall(fresh=False)
        outcomes = await asyncio.gather(
            *(database.fetch_value("SELECT pg_backend_pid()") for _ in range(10 * SIZE)),
            return_exceptions=True,
        )
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        # Each of them has cost one caller its answer, and no second one.
        assert [type(error) for error in failed] == [DatabaseUnavailable] * SIZE
        assert before.isdisjoint(outcomes)
        assert before.isdisjoint(await pids())


async def fill(database, size):
    """Make all connections, and give all back."""
    await hold_all(database, size)
    assert database.idle == size


async def test_the_first_user_of_a_dead_connection_is_the_last_one_that_pays_for_it(address):
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=SIZE, statement_timeout=0.3) as database,
        Metronome() as metronome,
    ):
        await fill(database, SIZE)
        network.stall(fresh=False)
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="did not answer a statement in time"):
            await database.fetch_value("SELECT 1")
        assert time.monotonic() - started < 0.3 + 2.0 + 0.5 + 2 * metronome.late
        started = time.monotonic()
        await hold_all(database, SIZE)
        assert time.monotonic() - started < 0.3 + 2 * metronome.late


async def test_a_transaction_on_a_dead_wire_is_unavailable_wherever_it_stands(address):
    async def begin(database, network):
        network.stall(fresh=False)
        async with database.transaction():
            raise AssertionError("BEGIN was answered")

    async def within(database, network):
        async with database.transaction() as transaction:
            network.stall(fresh=False)
            await transaction.fetch("SELECT 1")

    async def commit(database, network):
        async with database.transaction() as transaction:
            await transaction.fetch("SELECT 1")
            network.stall(fresh=False)

    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=2, statement_timeout=0.3) as database,
    ):
        for block in (begin, within, commit):
            await fill(database, 2)
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match="did not answer"):
                await block(database, network)
            assert time.monotonic() - started < 0.3 + CLEAN_UP
            assert database.in_use == 0


async def test_a_slow_statement_on_a_good_wire_is_slow_and_costs_no_connection(address):
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=2, statement_timeout=0.3) as database,
    ):
        await fill(database, 2)
        with pytest.raises(StatementTimeout, match=r"longer than 0\.3 s"):
            await database.fetch("SELECT pg_sleep(30)")
        with pytest.raises(StatementTimeout):
            async with database.transaction() as transaction:
                await transaction.fetch("SELECT pg_sleep(30)")
        await fill(database, 2)
        # Their number shows that none was made: two, and one for each request to cancel.
        assert network.accepted == 4


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
async def test_the_kernel_gives_up_a_silent_connection_in_seconds_and_not_in_hours(address):
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address) as database,
        database.transaction() as transaction,
    ):
        end = transaction._connection._transport.get_extra_info("socket")
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert [end.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [10, 5, 10_000]


def sleepers(witness):
    return witness.fetch_value(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_request_that_is_given_up_cancels_its_query_on_the_server_in_a_fifth_of_a_second(
    address, witness
):
    async with FaultyNetwork.in_front_of(address) as network, reached(network, address) as database:
        app = FastAPI()

        @app.get("/slow")
        async def slow():
            return await database.fetch_value("SELECT 1 FROM pg_sleep(30)")

        kitted(app)
        async with served(app, lifespan="on") as (client, _), Metronome() as metronome:
            for _ in range(5):
                request = asyncio.create_task(client.get("/slow"))

                async def one_sleeps():
                    return await sleepers(witness) == 1

                async def nobody_sleeps():
                    return await sleepers(witness) == 0

                await eventually(one_sleeps)
                request.cancel()
                started = time.monotonic()
                await eventually(nobody_sleeps)
                assert time.monotonic() - started < 0.2 + 2 * metronome.late
            await eventually(lambda: database.in_use == 0)


async def test_a_thousand_cancelled_statements_leak_nothing(address, witness):
    size = 5
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=size, acquire_timeout=10) as database,
    ):
        await database.execute("CREATE TABLE numbers (n int)")
        dice = dice_of("1,000 statements")

        async def block(number):
            async with database.transaction() as transaction:
                await transaction.execute("INSERT INTO numbers VALUES ($1)", number)
                await transaction.execute("SELECT pg_sleep(0.003)")
                raise LookupError("never committed")

        calls = (
            lambda number: database.fetch("SELECT pg_sleep(0.003), $1::int", number),
            lambda number: database.fetch("SELECT $1::int FROM generate_series(1, 2000)", number),
            lambda number: database.execute_many("SELECT pg_sleep(0.0005), $1::int", [(number,)] * 5),
            block,
        )
        cancelled = 0

        async def cancel_some(count):
            nonlocal cancelled
            for number in range(count):
                task = asyncio.create_task(dice.choice(calls)(number))
                await asyncio.sleep(dice.random() * 0.008)
                task.cancel()
                done, _ = await asyncio.wait([task], timeout=10)
                assert done, "a cancelled statement did not end"
                if not task.cancelled() and (error := task.exception()):
                    assert isinstance(error, LookupError), repr(error)
                cancelled += task.cancelled()

        await asyncio.gather(*(cancel_some(100) for _ in range(10)))
        assert cancelled > 500
        await eventually(lambda: database.in_use == 0)
        assert database.waiting == 0
        await hold_all(database, size)
        assert await database.fetch_value("SELECT count(*) FROM numbers") == 0

        async def at_baseline():
            states = await witness.fetch(
                "SELECT state FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            return [row["state"] for row in states] == ["idle"] * size

        await eventually(at_baseline)
        await eventually(lambda: network.connections == size)


async def test_the_next_caller_fails_in_time_where_all_connections_are_out(database, address):
    limit = 0.3
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=2, acquire_timeout=limit) as narrow,
        Metronome() as metronome,
    ):

        async def ask():
            started = time.monotonic()
            with pytest.raises(PoolTimeout):
                await narrow.fetch("SELECT 1")
            return time.monotonic() - started

        async with narrow.transaction(), narrow.transaction():
            times = await asyncio.gather(*(ask() for _ in range(50)))
            assert min(times) > limit * 0.9
            assert max(times) < limit + 0.1 + 2 * metronome.late
            assert narrow.waiting == 0
        await hold_all(narrow, 2)


async def test_no_set_local_reaches_the_next_borrower_however_its_transaction_ends(address):
    setting = "SELECT current_setting('work_mem') || current_setting('my.tenant', true)"
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=1, statement_timeout=0.5) as database,
    ):
        before = await database.fetch_row("SELECT current_setting('work_mem'), pg_backend_pid()")

        async def borrow(end):
            async with database.transaction() as transaction:
                await transaction.execute("SET LOCAL work_mem = '5MB'; SET LOCAL my.tenant = 'one'")
                await transaction.execute("SELECT pg_advisory_xact_lock(1)")
                assert await transaction.fetch_value(setting) == "5MBone"
                await end(transaction)

        async def commit(_):
            pass

        async def fail(_):
            raise LookupError

        async def refuse(transaction):
            await transaction.execute("SELECT 1 / 0")

        async def take_too_long(transaction):
            await transaction.execute("SELECT pg_sleep(30)")

        async def cancel(transaction):
            async with asyncio.timeout(0.05):
                await transaction.execute("SELECT pg_sleep(30)")

        async def nest(transaction):
            async with transaction.transaction() as nested:
                await nested.execute("SET LOCAL work_mem = '6MB'")
            async with transaction.transaction() as nested:
                await nested.execute("SET LOCAL work_mem = '7MB'")
                raise LookupError

        for end in (commit, fail, refuse, take_too_long, cancel, nest):
            with suppress(LookupError, ArithmeticError, TimeoutError, StatementTimeout, DivisionByZeroError):
                await borrow(end)
            after = await database.fetch_row("SELECT current_setting('work_mem'), pg_backend_pid()")
            # The same session: it was the end of the transaction that took it back, not that of the session.
            assert after == before, end.__name__
            assert not await database.fetch_value("SELECT current_setting('my.tenant', true)")
            assert not await database.fetch_value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")


async def test_a_plain_set_does_reach_the_next_borrower_as_the_docstring_says(address):
    async with FaultyNetwork.in_front_of(address) as network, reached(network, address, size=1) as database:
        async with database.transaction() as transaction:
            await transaction.execute("SET my.tenant = 'one'")
            await transaction.execute("CREATE TEMPORARY TABLE mine (n int)")
        with pytest.raises(LookupError):  # noqa: PT012 - the whole block is what raises
            async with database.transaction() as transaction:
                await transaction.execute("SET my.other = 'two'")
                raise LookupError
        assert await database.fetch_value("SELECT current_setting('my.tenant')") == "one"
        assert await database.fetch_value("SELECT count(*) FROM mine") == 0
        # Only what was rolled back with its transaction is gone.
        assert not await database.fetch_value("SELECT current_setting('my.other', true)")
    for what in ("``SET``", "advisory locks", "temporary tables", "``SET LOCAL``"):
        assert what in " ".join(Database.__doc__.split())


async def test_a_transaction_that_caught_the_error_of_a_statement_does_not_pass_for_committed(database):
    await database.execute("CREATE TABLE numbers (n int PRIMARY KEY)")

    async def block(caught, statement, *, nested):
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO numbers VALUES (1)")
            with suppress(caught):
                async with transaction.transaction() if nested else nullcontext(transaction) as inner:
                    async with asyncio.timeout(0.05):
                        await inner.execute(statement)

    for caught, statement in (
        (UniqueViolationError, "INSERT INTO numbers VALUES (1)"),
        (TimeoutError, "SELECT pg_sleep(30)"),
    ):
        with pytest.raises(InFailedSQLTransactionError) as failure:
            await block(caught, statement, nested=False)
        assert "nothing of it was kept" in "".join(failure.value.__notes__)
        assert await database.fetch_value("SELECT count(*) FROM numbers") == 0
        await block(caught, statement, nested=True)
        assert await database.execute("DELETE FROM numbers") == "DELETE 1"


async def test_a_begin_without_an_answer_is_no_error_of_the_loop_and_leaves_no_transaction(address, witness):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    async with (
        FaultyNetwork.in_front_of(address) as network,
        reached(network, address, size=1) as database,
    ):
        await database.execute("SELECT 1")
        network.delay(0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15), database.transaction():
                raise AssertionError("BEGIN was answered too early")
        network.delay(0)
        await eventually(lambda: database.in_use == 0)
        assert await database.fetch_value("SELECT 1") == 1

        async def none_idle_in_transaction():
            return not await witness.fetch_value(
                "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
                " AND datname = current_database()"
            )

        await eventually(none_idle_in_transaction)
    assert reported == []
