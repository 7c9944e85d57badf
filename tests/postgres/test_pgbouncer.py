"""Behind a real PgBouncer in transaction mode: each transaction may be on another server connection."""

import asyncio
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest

import freeloop.service
from freeloop.database import Address, Database, migrations
from freeloop.errors import DatabaseUnavailable, SettingsError, StartError, StatementTimeout
from freeloop.resources import open_database
from freeloop.settings import Settings
from freeloop.testing import eventually
from pgbouncer import PgBouncer

MIGRATIONS = Path(freeloop.service.__file__).parent / "migrations"
SERVERS = 2  # PgBouncer's default_pool_size in these tests


@pytest.fixture
async def pooled(bouncer, address):
    async with Database(bouncer.address(address), size=10, name="pooled") as database:
        yield database
        await eventually(lambda: database.in_use == 0)


@asynccontextmanager
async def all_servers(pooled):
    """Hold a transaction on each connection that PgBouncer has to PostgreSQL."""
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(pooled.transaction()) for _ in range(SERVERS)]
        assert len({await each.fetch_value("select pg_backend_pid()") for each in held}) == SERVERS
        yield held


def busy(database):
    """Count the sessions of this database that are in a statement or transaction, the asking one left out."""
    return database.fetch_value(
        "select count(*) from pg_stat_activity where datname = current_database() and state <> 'idle'"
        " and pid <> pg_backend_pid()"
    )


@dataclass(frozen=True)
class Number:
    n: int
    word: str


async def exercise(database, key):
    """Do everything that the layer can do, each step on whatever server PgBouncer gives."""
    rows = [(key, n, str(n)) for n in range(3)]
    await database.execute("insert into numbers values ($1, 0, '0')", key)
    await database.execute_many("insert into numbers values ($1, $2, $3)", rows[1:])
    assert await database.copy_in("numbers", [(-key, 1, "x")], columns=["key", "n", "word"]) == 1
    sql = "select n, word from numbers where key = $1 order by n"
    assert [tuple(row) for row in await database.fetch(sql, key)] == [row[1:] for row in rows]
    assert await database.fetch_row(sql, -key, into=Number) == Number(1, "x")
    assert await database.fetch_value("select count(*) from numbers where key = any($1)", [key, -key]) == 4
    assert await database.fetch_json(sql, -key) == b'[{"n":1,"word":"x"}]'
    assert [row["n"] for row in await database.shared(sql, key)] == [0, 1, 2]
    assert await database.fetch_value("select $1::mood", "happy") == "happy"
    assert await database.fetch_value("select $1::jsonb", {"a": [1]}) == {"a": [1]}
    async with database.transaction(isolation="repeatable_read") as transaction:
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with transaction.transaction():
                await transaction.execute("update numbers set n = 1 / (n - n) where key = $1", key)
        found = [row async for row in transaction.stream(sql, key, into=Number, prefetch=2)]
        assert found == [Number(n, word) for _, n, word in rows]
        await transaction.execute("delete from numbers where key = $1", key)
    assert await database.execute("delete from numbers where key = $1", -key) == "DELETE 1"


async def test_everything_works_for_more_callers_than_pgbouncer_has_connections(pooled):
    await pooled.execute("create table numbers (key int, n int, word text)")
    await pooled.execute("create type mood as enum ('sad', 'happy')")
    await asyncio.gather(*(exercise(pooled, key) for key in range(1, 61)))
    assert await pooled.fetch_value("select count(*) from numbers") == 0
    assert pooled.idle == 10  # each connection has lived through all that


async def test_no_statement_is_left_on_a_server(pooled):
    async def stream():
        async with pooled.transaction() as transaction:
            assert [row["n"] async for row in transaction.stream("select generate_series(1, 3) as n")]

    await asyncio.gather(*(stream() for _ in range(20)))
    async with all_servers(pooled) as held:
        for each in held:
            assert await each.fetch_value("select array_agg(name) from pg_prepared_statements") is None


async def test_no_setting_is_left_on_a_server(bouncer, address):
    # asyncpg turns it off for the statement that asks for what an enum is, and on again by another one.
    async with Database(address) as direct:
        await direct.execute(f"alter database {address.database} set jit = on")
        for n in range(20):
            await direct.execute(f"create type mood_{n} as enum ('sad', 'happy')")
    async with Database(bouncer.address(address), size=10) as pooled:
        for n in range(20):
            asked = (pooled.fetch_value(f"select $1::mood_{n}", "sad") for _ in range(20))
            await asyncio.gather(*asked)
        async with all_servers(pooled) as held:
            assert [await each.fetch_value("show jit") for each in held] == ["on"] * SERVERS


async def test_times_are_in_utc_on_every_server(pooled, address):
    await pooled.execute(f"alter database {address.database} set timezone = 'Asia/Taipei'")
    async with all_servers(pooled) as held:
        for each in held:
            assert await each.fetch_value("select current_setting('timezone')") == "UTC"
            assert await each.fetch_value("select current_setting('application_name')") == "freeloop"


async def test_arguments_that_cannot_be_sent_keep_no_server(bouncer, address, pooled):
    async with Database(bouncer.address(address)) as other:
        for _ in range(SERVERS + 1):
            with pytest.raises(asyncpg.DataError):
                await pooled.fetch("select 1 where 1 = $1", "one")
        async with asyncio.timeout(5), all_servers(other):
            pass
    assert pooled.idle == 1  # and it goes on with the same connection


async def test_a_cancelled_statement_ends_on_the_server(pooled, address):
    async with Database(address) as witness:
        task = asyncio.create_task(pooled.execute("select pg_sleep(60)"))
        await eventually(lambda: busy(witness))
        cancelled = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        await eventually(lambda: not_busy(witness))
        assert time.monotonic() - cancelled < 1
    assert await pooled.fetch_value("select 1") == 1


async def not_busy(database):
    return not await busy(database)


async def test_a_statement_that_takes_too_long_ends_on_the_server(bouncer, address):
    async with (
        Database(address) as witness,
        Database(bouncer.address(address), statement_timeout=0.3) as pooled,
    ):
        with pytest.raises(StatementTimeout):
            await pooled.execute("select pg_sleep(60)")
        with pytest.raises(StatementTimeout):
            async with pooled.transaction() as transaction:
                await transaction.execute("select pg_sleep(60)")
        await eventually(lambda: not_busy(witness))
        assert await pooled.fetch_value("select 1") == 1


async def test_cancelled_callers_keep_no_server_and_hit_nobody_else(pooled, bouncer, address):
    chance = random.Random(4)  # noqa: S311 - a seed, no secret
    answers = []

    async def bystand(bystander):
        while not done.is_set():
            answers.append(await bystander.fetch_value("select $1::int + 1", len(answers)) - len(answers))

    async def call():
        async with asyncio.timeout(chance.uniform(0, 0.02)):
            if chance.random() < 0.5:
                await pooled.fetch("select pg_sleep(0.005), $1::int", 1)
            else:
                async with pooled.transaction() as transaction:
                    await transaction.fetch("select pg_sleep(0.005), $1::int", 1)

    done = asyncio.Event()
    async with Database(address) as witness, Database(bouncer.address(address)) as bystander:
        standing = asyncio.create_task(bystand(bystander))
        rounds = 0
        while not standing.done() and (rounds < 30 or len(answers) < 50):
            await asyncio.gather(*(call() for _ in range(10)), return_exceptions=True)
            rounds += 1
        done.set()
        async with asyncio.timeout(10):
            await standing  # raises where another's cancellation has hit it
        await eventually(lambda: not_busy(witness))
        async with asyncio.timeout(5), all_servers(bystander):
            pass
    assert set(answers) == {1}


async def test_who_waits_in_pgbouncer_waits_in_bounded_time(pgbouncer_program, postgres, address):
    with_one = {"default_pool_size": 1, "query_wait_timeout": 2}
    async with AsyncExitStack() as stack:
        bouncer = await enter(stack, PgBouncer(pgbouncer_program, postgres, **with_one))
        holder = await stack.enter_async_context(Database(bouncer.address(address)))
        waiting = await stack.enter_async_context(Database(bouncer.address(address), statement_timeout=0.5))
        patient = await stack.enter_async_context(Database(bouncer.address(address)))
        async with holder.transaction() as transaction:
            await transaction.execute("select 1")
            for attempt in (lambda: waiting.fetch("select 1"), lambda: begin(waiting)):
                started = time.monotonic()
                with pytest.raises((StatementTimeout, DatabaseUnavailable)):
                    await attempt()
                assert time.monotonic() - started < 2
            with pytest.raises(DatabaseUnavailable, match="query_wait_timeout"):
                await patient.fetch("select 1")
        for database in (waiting, patient, holder):
            assert await database.fetch_value("select 1") == 1


async def enter(stack, bouncer):
    stack.push_async_callback(asyncio.to_thread, bouncer.__exit__, None, None, None)
    return await asyncio.to_thread(bouncer.__enter__)


async def begin(database):
    async with database.transaction() as transaction:
        await transaction.fetch("select 1")


async def test_the_pool_recovers_when_pgbouncer_is_restarted(pgbouncer_program, postgres, address):
    async with AsyncExitStack() as stack:
        bouncer = await enter(stack, PgBouncer(pgbouncer_program, postgres))
        pooled = await stack.enter_async_context(Database(bouncer.address(address), size=3))
        await asyncio.gather(*(pooled.execute("select pg_sleep(0.05)") for _ in range(3)))
        await asyncio.to_thread(bouncer.stop)
        with pytest.raises(DatabaseUnavailable):
            await pooled.fetch("select 1")
        await asyncio.to_thread(bouncer.start)
        assert await asyncio.gather(*(pooled.fetch_value("select 1") for _ in range(9))) == [1] * 9


async def test_pgbouncer_without_a_place_for_one_more_client_is_named(pgbouncer_program, postgres, address):
    async with AsyncExitStack() as stack:
        bouncer = await enter(stack, PgBouncer(pgbouncer_program, postgres, max_client_conn=2))
        pooled = await stack.enter_async_context(Database(bouncer.address(address), size=3))
        async with AsyncExitStack() as held:
            for _ in range(2):
                await held.enter_async_context(pooled.transaction())
            with pytest.raises(DatabaseUnavailable, match="max_client_conn"):
                await pooled.fetch("select 1")
        assert await pooled.fetch_value("select 1") == 1


async def test_a_pooler_that_nobody_has_told_of_is_refused_at_once(bouncer, address):
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match=r"answers at .* set FREELOOP_DATABASE_POOLER to"):
        await Database(bouncer.address(address, pooler="none")).open()
    assert time.monotonic() - started < 5


async def test_notifications_need_a_way_past_it(bouncer, address):
    async with Database(bouncer.address(address)) as pooled:
        with pytest.raises(SettingsError, match="FREELOOP_DATABASE_DIRECT_URL: notifications need"):
            pooled.listen("news")
    async with (
        Database(bouncer.address(address, direct=address)) as pooled,
        pooled.listen("news") as notifications,
    ):
        assert (await anext(notifications)).channel == ""
        await pooled.execute("notify news, 'sent through PgBouncer'")
        async with asyncio.timeout(5):
            assert (await anext(notifications)).payload == "sent through PgBouncer"


async def test_a_direct_address_that_leads_through_a_pooler_is_refused(bouncer, address):
    with pytest.raises(SettingsError, match="it leads where FREELOOP_DATABASE_URL does"):
        bouncer.address(address, direct=bouncer.address(address))
    wrong = replace(address, host="localhost", port=bouncer.port)
    async with Database(bouncer.address(address, direct=wrong)) as pooled:
        with pytest.raises(DatabaseUnavailable, match="a connection pooler answers at localhost"):
            async with pooled.listen("news"):
                pass


async def test_migrations_need_a_way_past_it(bouncer, address):
    pooled = bouncer.address(address)
    with pytest.raises(SettingsError, match="FREELOOP_DATABASE_DIRECT_URL: migrations need"):
        await migrations.migrate(pooled, MIGRATIONS)
    assert (await migrations.plan(pooled, MIGRATIONS)).pending == ()
    assert await migrations.migrate(replace(pooled, direct=address), MIGRATIONS) == ()


async def test_the_settings_lead_both_ways(bouncer, address):
    settings = await asyncio.to_thread(  # it looks for a file .env
        Settings,
        database_url=f"postgresql://{address.user}@127.0.0.1:{bouncer.port}/{address.database}",
        database_pooler="transaction",
        database_direct_url=f"postgresql://{address.user}@/{address.database}?host={address.host}",
        replicas=80,  # their pools end at PgBouncer, and are not counted
    )
    async with open_database(settings, MIGRATIONS) as database, database.listen("news") as notifications:
        assert (await anext(notifications)).channel == ""
        await database.execute("notify news, 'both ways'")
        async with asyncio.timeout(5):
            assert (await anext(notifications)).payload == "both ways"
    with pytest.raises(StartError, match="1 worker x 93 replicas x 1 listener"):
        async with open_database(settings.model_copy(update={"replicas": 93})):
            pass


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/{database}?search_path=other", "search_path.* Leave it out, and set it for the role"),
        ("/no_such_database", "no_such_database"),
    ],
)
async def test_a_login_that_pgbouncer_refuses_is_not_tried_again(bouncer, address, url, message):
    dsn = f"postgresql://{address.user}@127.0.0.1:{bouncer.port}{url.format(database=address.database)}"
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match=message):
        await Database(Address(dsn, pooler="transaction")).open()
    assert time.monotonic() - started < 10


async def test_in_session_mode_everything_works_as_without_it(pgbouncer_program, postgres, address):
    async with AsyncExitStack() as stack:
        settings = {"pool_mode": "session", "default_pool_size": 8}
        bouncer = await enter(stack, PgBouncer(pgbouncer_program, postgres, **settings))
        pooled = await stack.enter_async_context(Database(bouncer.address(address), size=4))
        await pooled.execute("create table numbers (key int, n int, word text)")
        await pooled.execute("create type mood as enum ('sad', 'happy')")
        await asyncio.gather(*(exercise(pooled, key) for key in range(1, 21)))
        async with pooled.listen("news") as notifications:
            assert (await anext(notifications)).channel == ""
            await pooled.execute("notify news, 'hello'")
            async with asyncio.timeout(5):
                assert (await anext(notifications)).payload == "hello"
        assert await migrations.migrate(bouncer.address(address), MIGRATIONS) == ()
