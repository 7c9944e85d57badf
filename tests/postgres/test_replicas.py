"""``db.read`` on a real primary with real streaming standbys: who sees what, and what happens without one."""

import asyncio
import logging
import math
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import asyncpg
import pytest
from pydantic import SecretStr

from freeloop.background import Background
from freeloop.database import Address, Database
from freeloop.errors import DatabaseUnavailable, PoolTimeout, SettingsError
from freeloop.metrics import Metrics
from freeloop.readings import list_database_readings
from freeloop.resources import find_replicas, open_database
from freeloop.scope import current_scope
from freeloop.settings import Settings
from freeloop.testing import FaultyNetwork, eventually
from streaming_replica import ask, in_scope, on_tcp, replicated

COUNT = "SELECT count(*) FROM orders"
WHERE = "SELECT pg_is_in_recovery()"


@dataclass
class Order:
    id: int


@asynccontextmanager
async def opened(shop, *, replicas=None, **options):
    primary, standby = shop
    database = Database(primary, replicas=[standby] if replicas is None else replicas, **options)
    await database.open()
    try:
        yield database
        await eventually(lambda: database.load == 0)
    finally:
        await database.close()


@pytest.fixture
async def database(shop):
    async with opened(shop) as database:
        await until_it_answers(database)
        database.read.counts.update(dict.fromkeys(database.read.counts, 0))
        yield database


@asynccontextmanager
async def paused(standby):
    await standby.pause()
    try:
        yield
    finally:
        await standby.resume()


@contextmanager
def logged(caplog):
    with caplog.at_level(logging.INFO, logger="freeloop.database"):
        yield lambda: [record.getMessage() for record in caplog.records if "replica" in record.getMessage()]


async def test_every_kind_of_read_goes_to_the_replica(database):
    async def read():
        assert [row[0] for row in await database.read.fetch(WHERE)] == [True]
        assert (await database.read.fetch_row(WHERE))[0] is True
        assert await database.read.fetch_value(WHERE) is True
        assert await database.read.fetch_json(WHERE) == b'[{"pg_is_in_recovery":true}]'
        assert [row[0] for row in await database.read.shared(WHERE)] == [True]
        assert await database.read.shared(WHERE, encode=lambda rows: bytes(rows[0][0])) == b"\0"
        async with database.read.transaction(isolation="repeatable_read") as transaction:
            assert await transaction.fetch_value(WHERE) is True
            assert [n["n"] async for n in transaction.stream("SELECT generate_series(1, 250) n")][-1] == 250
        return database.read.counts["replica"]

    assert await in_scope(read()) == 7
    assert database.read.counts == {"replica": 7, "wrote": 0, "behind": 0, "failed": 0}
    assert database.in_use == 0
    assert await database.fetch_value(WHERE) is False


async def test_rows_become_types_there_too(database, pair):
    await database.execute("INSERT INTO orders VALUES (7)")
    await pair[1].catch_up()

    async def read():
        assert await database.read.fetch("SELECT id FROM orders", into=Order) == [Order(7)]
        assert await database.read.fetch_row("SELECT id FROM orders", into=Order) == Order(7)

    await in_scope(read())


async def test_a_replica_refuses_a_write(database):
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await in_scope(database.read.fetch("INSERT INTO orders VALUES (1) RETURNING id"))


async def execute(database):
    await database.execute("INSERT INTO orders VALUES (1)")


async def execute_many(database):
    await database.execute_many("INSERT INTO orders VALUES ($1)", [(1,)])


async def copy_in(database):
    await database.copy_in("orders", [(1,)], columns=["id"])


async def fetch_returning(database):
    await database.fetch("INSERT INTO orders VALUES (1) RETURNING id")


async def hidden_in_a_query(database):
    assert (
        await database.fetch_value("WITH made AS (INSERT INTO orders VALUES (1) RETURNING id) TABLE made")
        == 1
    )


async def transaction(database):
    async with database.transaction() as block:
        await block.execute("INSERT INTO orders VALUES (1)")


async def repeated(database):
    await database.repeat(lambda block: block.execute("INSERT INTO orders VALUES (1)"))


async def in_a_child_task(database):
    await asyncio.create_task(execute(database))


@pytest.mark.parametrize(
    "write",
    [
        *(execute, execute_many, copy_in, fetch_returning, hidden_in_a_query),
        *(transaction, repeated, in_a_child_task),
    ],
)
async def test_who_has_written_sees_it_while_the_replica_does_not_have_it(database, pair, write):
    async def writer():
        assert await database.read.fetch_value(COUNT) == 0
        await write(database)
        assert await database.read.fetch_value(COUNT) == 1
        assert len(await database.read.shared("SELECT id FROM orders")) == 1
        async with database.read.transaction() as block:
            assert await block.fetch_value(COUNT) == 1
        # A child of the scope is the scope.
        assert await asyncio.create_task(database.read.fetch_value(COUNT)) == 1

    async with paused(pair[1]):
        await in_scope(writer())
        assert await in_scope(database.read.fetch_value(COUNT)) == 0
        assert await in_scope(database.fetch_value(COUNT)) == 1
    assert database.read.counts["wrote"] == 4


async def reading_transaction(database):
    async with database.transaction(readonly=True) as block:
        await block.fetch(COUNT)


async def shared_read(database):
    await database.shared(COUNT)


async def check(database):
    await database.check(timeout=1)


async def read_of_read(database):
    await database.read.fetch(COUNT)


@pytest.mark.parametrize("read", [reading_transaction, shared_read, check, read_of_read])
async def test_what_only_reads_is_no_write(database, pair, read):
    async def reader():
        await read(database)
        return await database.read.fetch_value(COUNT)

    async with paused(pair[1]):
        await execute_outside_of_this_pool(pair)
        assert await in_scope(reader()) == 0


async def execute_outside_of_this_pool(pair):
    await ask(replace(pair[0].address, database="shop"), "INSERT INTO orders VALUES (1)")


async def test_a_write_that_failed_may_have_taken_effect_and_counts(database, pair):
    async def writer():
        with pytest.raises(LookupError):
            async with database.transaction():
                raise LookupError
        await database.read.fetch_value(COUNT)

    await in_scope(writer())
    assert database.read.counts["wrote"] == 1


async def test_a_background_execution_sees_what_was_written_before_it_was_started(database, pair):
    background = Background()

    async def writer():
        await execute(database)
        return await background.start(database.read.fetch_value, COUNT)

    async with paused(pair[1]):
        assert await in_scope(writer()) == 1
        assert await in_scope(database.read.fetch_value(COUNT)) == 0


async def test_a_thread_of_the_scope_sees_its_write(database, pair):
    loop = asyncio.get_running_loop()

    def in_a_thread():
        return asyncio.run_coroutine_threadsafe(database.read.fetch_value(COUNT), loop).result(10)

    async def writer():
        await execute(database)
        return await asyncio.to_thread(in_a_thread)

    async with paused(pair[1]):
        assert await in_scope(writer()) == 1


async def test_a_write_outside_of_any_scope_is_everybodys(database, pair):
    async with paused(pair[1]):
        await execute(database)
        assert await database.read.fetch_value(COUNT) == 1
        assert await in_scope(database.read.fetch_value(COUNT)) == 1


async def test_once_the_replica_has_the_write_its_writer_reads_there_again(database, pair):
    async def writer():
        async with paused(pair[1]):
            await execute(database)
            assert await database.read.fetch_value(WHERE) is False

        async def goes_there():
            return await database.read.fetch_value(WHERE)

        await eventually(goes_there, within=10)
        assert await database.read.fetch_value(COUNT) == 1

    await in_scope(writer())


async def test_a_replica_that_is_too_far_behind_is_left_out_and_taken_in_again(shop, pair, caplog):
    with logged(caplog) as messages:
        async with opened(shop, max_lag=3) as database:
            (replica,) = database.replicas.all
            async with paused(pair[1]):
                await execute_outside_of_this_pool(pair)
                await eventually(lambda: replica.trouble is not None, within=10)
                assert database.replicas.lag(replica) > 3
                assert await in_scope(database.read.fetch_value(COUNT)) == 1
                assert await in_scope(database.read.fetch_value(WHERE)) is False
            await eventually(lambda: replica.trouble is None)
            assert await in_scope(database.read.fetch_value(WHERE)) is True
    assert messages() == ["a read replica is left out", "a read replica answers again"]
    (left_out,) = (record for record in caplog.records if hasattr(record, "trouble"))
    assert left_out.trouble == "it is more than 3 s behind"


async def test_while_the_primary_cannot_be_seen_its_replica_answers_for_max_lag_and_no_longer(pair, shop):
    """Somebody else may see it, and write there."""
    async with FaultyNetwork.in_front_of(on_tcp(pair[0])) as network:
        primary = replace(network.reach(on_tcp(pair[0])), database="shop")
        async with opened((primary, shop[1]), max_lag=3, acquire_timeout=0.2) as database:
            await until_it_answers(database)
            (replica,) = database.replicas.all
            network.refuse()
            network.cut()
            lost = time.monotonic()
            await execute_outside_of_this_pool(pair)

            async def nothing_answers():
                try:
                    await in_scope(database.read.fetch_value(WHERE))
                except DatabaseUnavailable:
                    return True
                return False

            await eventually(nothing_answers)
            # It had answered since, and is not asked any more before a look has said so.
            assert 1 < time.monotonic() - lost < 3 + 0.5
            await eventually(lambda: replica.trouble is not None)
            assert replica.trouble == "how far behind it is has not been known for 3 s"
            await network.heal(standing=False)
            await until_it_answers(database)
            assert await in_scope(database.read.fetch_value(COUNT)) == 1


@pytest.mark.parametrize("lag", [2.9, 0, -1, math.nan, math.inf, "10", None, True])
def test_a_lag_that_no_look_can_tell_is_refused(lag):
    with pytest.raises(ValueError, match=re.escape(f"max_lag: expected seconds, 3 or more; got {lag!r}")):
        Database(Address(), max_lag=lag)


async def test_an_idle_primary_leaves_no_replica_behind_also_at_the_start_of_a_page(database, pair):
    (replica,) = database.replicas.all
    await ask(pair[0].address, "SELECT pg_switch_wal()")
    switched = time.monotonic()
    await eventually(lambda: replica.fresh > switched, within=10)


async def test_writers_and_readers_never_miss_their_own(database):
    """While the replica replays as it may: a reader of its own write is right, however the moments fall."""

    async def work(number):
        for round_ in range(15):
            key = number * 1000 + round_

            async def request(key=key):
                assert await database.read.fetch_value("SELECT count(*) FROM orders WHERE id = $1", key) == 0
                await database.execute("INSERT INTO orders VALUES ($1)", key)
                for _ in range(10):
                    assert (
                        await database.read.fetch_value("SELECT count(*) FROM orders WHERE id = $1", key) == 1
                    )
                    await asyncio.sleep(0.02)

            await in_scope(request())

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(work(number))
    assert database.read.counts["replica"] > 100
    assert database.read.counts["wrote"] > 100


async def until_it_answers(database):
    """Wait for the replica: at the first look it may still replay what has made the database."""

    async def goes_there():
        return await in_scope(database.read.fetch_value(WHERE))

    await eventually(goes_there)


async def read_all(database, count):
    return await asyncio.gather(*(in_scope(database.read.fetch_value(WHERE)) for _ in range(count)))


async def test_without_replicas_it_reads_from_the_primary(shop):
    async with opened(shop, replicas=[]) as database:
        assert await database.read.fetch_value(WHERE) is False
        async with database.read.transaction() as transaction:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await transaction.execute("INSERT INTO orders VALUES (1)")
        assert set(database.read.counts.values()) == {0}


async def test_a_replica_that_is_no_standby_is_not_trusted(shop):
    async with opened(shop, replicas=[shop[0]]) as database:
        assert await in_scope(database.read.fetch_value(WHERE)) is False
        assert "no standby" in database.replicas.all[0].trouble


async def test_a_replica_that_is_down_at_the_start_stops_nothing_and_serves_once_it_is_up(pair, shop, caplog):
    with logged(caplog) as messages:
        async with FaultyNetwork.in_front_of(on_tcp(pair[1])) as network:
            network.refuse()
            replica = replace(network.reach(on_tcp(pair[1])), database="shop")
            async with opened(shop, replicas=[replica]) as database:
                assert set(await read_all(database, 30)) == {False}
                assert messages() == ["a read replica is left out"]
                await network.accept()
                await until_it_answers(database)
    assert messages()[-1] == "a read replica answers again"


@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_a_replica_that_dies_under_load_costs_no_answer(pair, shop, fault):
    async with FaultyNetwork.in_front_of(on_tcp(pair[1])) as network:
        replica = replace(network.reach(on_tcp(pair[1])), database="shop")
        async with opened(shop, replicas=[replica], size=4) as database:
            await until_it_answers(database)
            answers = []
            slowest = 0.0

            async def ask_on():
                nonlocal slowest
                loop = asyncio.get_running_loop()
                while True:
                    started = loop.time()
                    answers.append(await in_scope(database.read.fetch_value(WHERE)))
                    slowest = max(slowest, loop.time() - started)

            async with asyncio.TaskGroup() as group:  # which an error of any of them would end
                tasks = [group.create_task(ask_on()) for _ in range(20)]
                await eventually(lambda: answers.count(True) > 100)
                if fault == "cut":
                    network.refuse()
                    network.cut()
                else:
                    network.stall()
                await eventually(lambda: answers.count(False) > 100, within=20)
                await network.heal(standing=False)
                before = answers.count(True)
                await eventually(lambda: answers.count(True) > before + 100, within=20)
                for task in tasks:
                    task.cancel()
            # An interval and a look, and what the primary's pool takes for all of them.
            assert slowest < 6
            assert database.read.counts["failed"] > 0


async def test_reads_without_a_replica_leave_half_of_the_primary_to_others(pair, shop):
    async with FaultyNetwork.in_front_of(on_tcp(pair[1])) as network:
        network.refuse()
        replica = replace(network.reach(on_tcp(pair[1])), database="shop")
        async with opened(shop, replicas=[replica], size=4, acquire_timeout=0.6) as database:
            herd = [
                asyncio.create_task(in_scope(database.read.fetch_value("SELECT pg_sleep(30)")))
                for _ in range(40)
            ]
            try:
                await eventually(lambda: database.in_use == 2)
                for _ in range(10):
                    assert await in_scope(database.fetch_value(WHERE)) is False
                done, _ = await asyncio.wait(herd, timeout=5, return_when=asyncio.FIRST_COMPLETED)
                assert {type(task.exception()) for task in done} == {PoolTimeout}
                assert "half of 4" in str(done.pop().exception())
                assert database.in_use == 2
            finally:
                for task in herd:
                    task.cancel()
                await asyncio.wait(herd, timeout=10)


async def hold_all(database, stack):
    """Take all connections of a pool, and return when they are taken."""
    for _ in range(database.size):
        await stack.enter_async_context(database.transaction(readonly=True))


async def read_value(database):
    await database.read.fetch_value(WHERE)


async def read_in_a_transaction(database):
    async with database.read.transaction() as block:
        await block.fetch_value(WHERE)


@pytest.mark.parametrize("read", [read_value, read_in_a_transaction])
@pytest.mark.parametrize("replicas_are_there", [True, False])
async def test_a_read_waits_for_connections_as_long_as_for_one(shop, read, replicas_are_there):
    """At the replica, for a place at the primary, and for a connection there: together once."""
    async with opened(shop, size=2, acquire_timeout=1.0) as database, AsyncExitStack() as stack:
        await until_it_answers(database)
        await hold_all(database, stack)
        if replicas_are_there:
            await hold_all(database.replicas.all[0].database, stack)
        else:
            database.replicas.all[0].fresh = -math.inf  # until the next look
        first = asyncio.create_task(in_scope(read(database)))  # has the one place while it waits
        await asyncio.sleep(0.1)
        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            await in_scope(read(database))
        assert time.monotonic() - started < 1.3
        with pytest.raises(PoolTimeout):
            await first


async def test_a_read_waits_for_connections_no_longer_than_its_deadline(shop):
    async def read(database):
        current_scope().set_deadline(0.3)
        await database.read.fetch_value(WHERE)

    async with opened(shop, size=2, acquire_timeout=2.0) as database, AsyncExitStack() as stack:
        await until_it_answers(database)
        await hold_all(database, stack)
        await hold_all(database.replicas.all[0].database, stack)
        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            await in_scope(read(database))
        assert time.monotonic() - started < 0.6


@asynccontextmanager
async def never_waiting(standby):
    """Let the standby cancel at once what holds up its replay."""
    await standby.ask("ALTER SYSTEM SET max_standby_streaming_delay = 0")
    await standby.ask("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await standby.ask("ALTER SYSTEM RESET max_standby_streaming_delay")
        await standby.ask("SELECT pg_reload_conf()")


async def test_a_read_that_the_standby_cancels_for_its_replay_is_answered_by_the_primary(database, pair):
    slow = "SELECT pg_is_in_recovery(), count(*) FROM orders, pg_sleep(1)"

    async def reads_there():
        return await pair[1].ask(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1)' AND wait_event = 'PgSleep'"
        )

    async with never_waiting(pair[1]):
        read = asyncio.create_task(in_scope(database.read.fetch_row(slow)))
        await eventually(reads_there)
        await database.execute("TRUNCATE orders")
        assert tuple(await read) == (False, 0)
    assert database.read.counts["failed"] == 1
    assert database.replicas.all[0].trouble is None


@pytest.fixture
def trio():
    with replicated(standbys=2) as servers:
        yield servers


async def test_two_replicas_share_the_reads_and_one_alone_takes_all(trio):
    primary, one, two = trio
    async with opened((on_tcp(primary), on_tcp(one, two))) as database:
        assert len(database.replicas.all) == 2
        ports = "SELECT inet_server_port()"
        answers = await asyncio.gather(
            *(in_scope(database.read.fetch_value(ports + " FROM pg_sleep(0.05)")) for _ in range(20))
        )
        assert set(answers) == {one.port, two.port}
        await asyncio.to_thread(one.stop)
        answers = await asyncio.gather(*(in_scope(database.read.fetch_value(ports)) for _ in range(20)))
        assert set(answers) <= {two.port, primary.port}
        assert {await in_scope(database.read.fetch_value(ports)) for _ in range(5)} == {two.port}
        # Without the primary nothing is committed, so what the replica has is all there is.
        await asyncio.to_thread(primary.stop)
        looked = time.monotonic()
        await eventually(lambda: database.idle == 0)
        for _ in range(5):
            assert await in_scope(database.read.fetch_value(ports)) == two.port
            await asyncio.sleep(0.5)
        assert all(replica.fresh <= looked for replica in database.replicas.all)


@pytest.fixture
def settings(pair):
    primary, standby = pair
    return Settings(database_url=on_tcp(primary).dsn, database_read_url=on_tcp(standby).dsn)


async def test_the_settings_name_the_replicas_and_the_metrics_show_each_pool(settings, pair):
    await pair[1].catch_up()
    async with open_database(settings) as database:
        assert await in_scope(database.read.fetch_value(WHERE)) is True
        metrics = Metrics()
        metrics.watch(list_database_readings(lambda: database))
        shown = metrics.render().decode()
    replica = f"main at 127.0.0.1:{pair[1].port}/postgres"
    for line in (
        'freeloop_database_connections_in_use{pool="main"} 0.0',
        f'freeloop_database_connections_idle{{pool="{replica}"}} 1.0',
        f'freeloop_database_acquire_seconds_bucket{{le="+Inf",pool="{replica}"}} 1.0',
        f'freeloop_database_acquire_seconds_count{{pool="{replica}"}} 1.0',
        'freeloop_database_acquire_seconds_count{pool="main"} 0.0',
        'freeloop_database_reads_total{way="replica"} 1.0',
        f'freeloop_database_replica_left_out{{pool="{replica}"}} 0.0',
    ):
        assert line in shown.splitlines(), shown
    assert f'freeloop_database_replica_lag_seconds{{pool="{replica}"}}' in shown


@pytest.fixture
def one_migration(tmp_path):
    statements = "-- migrate: apply\nCREATE TABLE latest (n int);\n-- migrate: rollback\nDROP TABLE latest;\n"
    (tmp_path / "0001-latest.sql").write_text(f"-- the latest\n-- depends:\n\n{statements}")
    return tmp_path


async def test_what_is_migrated_is_read_from_no_replica_that_does_not_have_it(settings, pair, one_migration):
    async with paused(pair[1]), open_database(settings, one_migration) as database:
        assert await in_scope(database.read.fetch_value("SELECT count(*) FROM latest")) == 0


async def test_a_refused_login_stops_nothing_and_its_setting_is_named(settings, pair):
    dsn = settings.database_read_url.get_secret_value().replace(pair[0].password, "wrong-one")
    async with open_database(settings.model_copy(update={"database_read_url": SecretStr(dsn)})) as database:
        assert await in_scope(database.read.fetch_value(WHERE)) is False
        trouble = database.replicas.all[0].trouble
    assert "refused the login" in trouble
    assert "Check FREELOOP_DATABASE_READ_URL" in trouble
    assert "wrong-one" not in trouble


def test_replicas_of_the_embedded_server_are_refused_at_the_start():
    with pytest.raises(SettingsError, match="the embedded one has none"):
        find_replicas(Settings(database_url=None, database_read_url="postgresql://db2/shop"))


async def test_the_time_to_acquire_is_counted_also_where_it_was_in_vain(shop):
    async with opened(shop, size=1, acquire_timeout=0.15) as database:
        await database.fetch(WHERE)
        async with database.transaction():
            with pytest.raises(PoolTimeout):
                await database.fetch(WHERE)
        counted = dict(database.acquire_times.list_buckets())
    assert database.acquire_times.count == counted["+Inf"] == 3
    assert counted["0.1"] == 2
    assert 0.15 <= database.acquire_times.seconds < 1
