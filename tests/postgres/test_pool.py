"""The pool: units of work, bounds, errors and what comes back from it."""

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import asyncpg
import pytest

from freeloop.database import Address, Database
from freeloop.errors import DatabaseUnavailable, PoolTimeout, StatementTimeout
from freeloop.scope import Scope
from freeloop.testing import eventually


@asynccontextmanager
async def running(coroutine):
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=5)


def sleepers(database):
    """Count the statements that sleep on the server, the asking one left out."""
    return database.fetch_value(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_the_five_ways_to_run_a_statement(database):
    await database.execute("CREATE TABLE numbers (n int)")
    await database.execute_many("INSERT INTO numbers VALUES ($1)", [(1,), (2,), (3,)])
    assert [row["n"] for row in await database.fetch("SELECT n FROM numbers ORDER BY n")] == [1, 2, 3]
    assert (await database.fetch_row("SELECT n FROM numbers WHERE n > $1 ORDER BY n", 1))["n"] == 2
    assert await database.fetch_row("SELECT n FROM numbers WHERE n > 9") is None
    assert await database.fetch_value("SELECT count(*) FROM numbers") == 3
    assert await database.execute("DELETE FROM numbers WHERE n < 3") == "DELETE 2"


async def test_json_is_read_and_written_as_python_values(database):
    document = {"name": "Jürgen 測試", "tags": ["a", None, 1.5, True], "nested": {"n": 10**15}}
    for kind in ("json", "jsonb"):
        assert await database.fetch_value(f"SELECT $1::{kind}", document) == document
        assert await database.fetch_value(f"SELECT '[1, {{}}]'::{kind}") == [1, {}]


async def test_the_session_says_who_we_are_and_speaks_utc(database):
    assert await database.fetch_value("SHOW application_name") == "freeloop"
    assert await database.fetch_value("SHOW timezone") == "UTC"


async def test_a_statement_holds_a_connection_for_itself_only(address):
    async with Database(address, size=1) as database:
        assert (database.size, database.in_use, database.idle) == (1, 0, 1)
        async with running(database.fetch("SELECT pg_sleep(30)")):
            await eventually(lambda: database.in_use == 1)
            assert database.idle == 0
        await eventually(lambda: database.in_use == 0)
        assert await database.fetch_value("SELECT 1") == 1
        assert database.idle == 1


async def test_no_free_connection_is_a_pool_timeout_that_says_what_to_do(address):
    async with Database(address, size=2, acquire_timeout=0.2) as database:
        async with database.transaction(), database.transaction():
            started = asyncio.get_running_loop().time()
            async with running(database.fetch("SELECT 1")) as waiter:
                await eventually(lambda: database.waiting == 1)
                with pytest.raises(PoolTimeout) as caught:
                    await waiter
            assert 0.15 < asyncio.get_running_loop().time() - started < 1.5
        assert re.fullmatch(
            r"no connection to 'main' came free within 0\.2 s \(2 of 2 lent; longest held \d[\d.]* s\)\. "
            r"Raise FREELOOP_DATABASE_POOL_SIZE, or .*",
            str(caught.value),
        )
        assert database.waiting == 0
        assert await database.fetch_value("SELECT 1") == 1


async def test_a_wait_for_a_connection_ends_with_the_deadline(address):
    async def ask(database):
        Scope("r", seconds=0.2).enter()
        await database.fetch("SELECT 1")

    async with Database(address, size=1, acquire_timeout=30) as database, database.transaction():
        started = asyncio.get_running_loop().time()
        with pytest.raises(PoolTimeout):
            await asyncio.create_task(ask(database))
        assert 0.15 < asyncio.get_running_loop().time() - started < 1.5


async def test_who_has_waited_longest_is_next(address):
    async with Database(address, size=1) as database:
        order = []

        async def ask(number):
            order.append(await database.fetch_value("SELECT $1::int", number))

        async with database.transaction():
            tasks = [asyncio.create_task(ask(number)) for number in range(10)]
            await eventually(lambda: database.waiting == 10)
            tasks[4].cancel()
            await asyncio.wait([tasks[4]], timeout=5)
        await asyncio.wait(tasks, timeout=5)
        assert order == [0, 1, 2, 3, 5, 6, 7, 8, 9]


async def test_who_is_cancelled_in_the_moment_of_their_turn_passes_it_on(address):
    async with Database(address, size=1) as database:
        async with database.transaction():
            first, second = (asyncio.create_task(database.fetch_value("SELECT 1")) for _ in range(2))
            await eventually(lambda: database.waiting == 2)
        first.cancel()  # it has the connection, and has not run since
        assert await asyncio.wait_for(second, 5) == 1
        assert first.cancelled()


async def test_a_place_whose_connection_cannot_be_made_is_the_next_ones(address):
    """A server that is full for one caller has room for the next, who waits meanwhile."""
    async with Database(address, size=1) as database:
        database.drop_connections()
        make, refused = database._pool._connector.connect, []

        async def refuse_once(*_, **options):
            if not refused:
                refused.append(True)
                await eventually(lambda: database.waiting == 2)
                raise DatabaseUnavailable("full")
            return await make(**options)

        database._pool._connector.connect = refuse_once
        first, second = (asyncio.create_task(database.fetch_value("SELECT 1")) for _ in range(2))
        assert await asyncio.wait_for(second, 5) == 1
        with pytest.raises(DatabaseUnavailable, match="full"):
            await first


async def test_connections_that_nobody_needs_are_ended_and_those_in_use_stay(address, monkeypatch):
    monkeypatch.setattr("freeloop.database.sessions._LIFETIME", 0.2)
    async with Database(address, size=3) as database:
        await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.05)") for _ in range(3)))
        assert database.idle == 3
        kept = await database.fetch_value("SELECT pg_backend_pid()")

        async def is_alone():
            assert await database.fetch_value("SELECT pg_backend_pid()") == kept
            return database.idle == 1

        await eventually(is_alone)
        await eventually(lambda: database.idle == 0)
        assert await database.fetch_value("SELECT 1") == 1


async def test_a_statement_on_a_free_connection_takes_no_task(database):
    await database.fetch("SELECT 1")
    loop, made = asyncio.get_running_loop(), []

    def note(loop, coroutine, **options):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(note)
    try:
        for _ in range(10):
            await database.fetch("SELECT 1")
        async with database.transaction() as transaction:
            await transaction.fetch("SELECT 1")
    finally:
        loop.set_task_factory(None)
    assert made == []


async def test_a_slow_statement_is_cancelled_on_the_server(address, database):
    async with Database(address, statement_timeout=0.2) as hurried:
        with pytest.raises(
            StatementTimeout, match=r"longer than 0\.2 s.*FREELOOP_DATABASE_STATEMENT_TIMEOUT"
        ):
            await hurried.fetch("SELECT pg_sleep(30)")

        async def nobody_sleeps():
            return await sleepers(database) == 0

        await eventually(nobody_sleeps)
        assert await hurried.fetch_value("SELECT 1") == 1


async def test_a_slow_statement_in_a_transaction_undoes_it(address):
    async with Database(address, size=1, statement_timeout=0.2) as hurried:
        await hurried.execute("CREATE TABLE numbers (n int)")
        with pytest.raises(StatementTimeout):  # noqa: PT012 - the whole block is what raises
            async with hurried.transaction() as transaction:
                await transaction.execute("INSERT INTO numbers VALUES (1)")
                await transaction.fetch("SELECT pg_sleep(30)")
        assert await hurried.fetch_value("SELECT count(*) FROM numbers") == 0


async def test_a_statement_cancelled_by_an_operator_is_a_statement_timeout(database):
    async with running(database.fetch("SELECT pg_sleep(30)")) as slow:

        async def cancelled():
            return await database.fetch_value(
                "SELECT bool_or(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%'"
                # Between Parse and Execute it is active too, and a request to cancel would be lost.
                " AND wait_event = 'PgSleep' AND datname = current_database() AND pid <> pg_backend_pid()"
            )

        await eventually(cancelled)
        with pytest.raises(StatementTimeout, match="user request"):
            await slow


async def test_a_cancelled_caller_cancels_the_statement_on_the_server(database):
    async def one_sleeps():
        return await sleepers(database) == 1

    async def nobody_sleeps():
        return await sleepers(database) == 0

    async with running(database.fetch("SELECT pg_sleep(30)")):
        await eventually(one_sleeps)
    await eventually(nobody_sleeps)


@pytest.mark.parametrize("size", [1, 5])
async def test_two_hundred_cancelled_statements_leak_no_connection(address, size):
    async with Database(address, size=size, acquire_timeout=10) as database:
        for number in range(200):
            task = asyncio.create_task(database.fetch("SELECT pg_sleep(0.002), $1::int", number))
            # Each is cancelled at another point: before it ran, waiting, in the statement, on release.
            await asyncio.sleep(number * 0.00004)
            task.cancel()
            await asyncio.wait([task], timeout=5)
        await eventually(lambda: database.in_use == 0)
        assert database.waiting == 0
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            answers = [
                group.create_task(database.fetch_value("SELECT pg_sleep(0.01)::text")) for _ in range(size)
            ]
        assert [answer.result() for answer in answers] == [""] * size


async def test_cancelled_transactions_leak_no_connection_and_keep_nothing(address):
    async with Database(address, size=2, acquire_timeout=10) as database:
        await database.execute("CREATE TABLE numbers (n int)")

        async def insert():
            async with database.transaction() as transaction:
                await transaction.execute("INSERT INTO numbers VALUES (1)")
                await transaction.execute("SELECT pg_sleep(30)")

        for number in range(60):
            # A cancelled anyio scope cancels every await anew, the rollback's too, unlike a task's cancel.
            with anyio.move_on_after(number * 0.0002):
                await insert()
        await eventually(lambda: database.in_use == 0)
        assert await database.fetch_value("SELECT count(*) FROM numbers") == 0


async def test_an_open_transaction_is_rolled_back_when_its_connection_comes_back(address):
    async with Database(address, size=1) as database:
        await database.execute("CREATE TABLE numbers (n int)")
        await database.execute("BEGIN; INSERT INTO numbers VALUES (1)")
        assert await database.fetch_value("SELECT count(*) FROM numbers") == 0


async def test_nothing_is_sent_when_a_connection_comes_back(address):
    async with Database(address, size=1) as database:
        await database.execute("SET work_mem = '5MB'")
        # The setting is still there: no RESET ALL was sent. (Why SET LOCAL is the way to go.)
        assert await database.fetch_value("SHOW work_mem") == "5MB"
        last = "SELECT query FROM pg_stat_activity WHERE pid = $1"
        pid = await database.fetch_value("SELECT pg_backend_pid() AS mine")
        async with Database(address, size=1) as other:
            assert await other.fetch_value(last, pid) == "SELECT pg_backend_pid() AS mine"


async def test_a_transaction_commits_at_the_end_of_its_block(database):
    await database.execute("CREATE TABLE numbers (n int)")
    async with database.transaction() as transaction:
        await transaction.execute("INSERT INTO numbers VALUES (1)")
        assert await database.fetch_value("SELECT count(*) FROM numbers") == 0
    assert await database.fetch_value("SELECT count(*) FROM numbers") == 1


async def test_a_transaction_whose_block_raises_is_rolled_back_and_raises_the_same(database):
    await database.execute("CREATE TABLE numbers (n int)")
    for mistake in (ValueError("mine"), TimeoutError("mine"), OSError("mine")):
        with pytest.raises(type(mistake)) as caught:  # noqa: PT012 - the whole block is what raises
            async with database.transaction() as transaction:
                await transaction.execute("INSERT INTO numbers VALUES (1)")
                raise mistake
        assert caught.value is mistake
    assert await database.fetch_value("SELECT count(*) FROM numbers") == 0


async def test_a_savepoint_is_undone_alone(database):
    await database.execute("CREATE TABLE numbers (n int PRIMARY KEY)")
    async with database.transaction() as transaction:
        await transaction.execute("INSERT INTO numbers VALUES (1)")
        with pytest.raises(asyncpg.UniqueViolationError):  # noqa: PT012 - the whole block is what raises
            async with transaction.transaction() as nested:
                await nested.execute("INSERT INTO numbers VALUES (2)")
                await nested.execute("INSERT INTO numbers VALUES (1)")
        async with transaction.transaction() as nested:
            await nested.execute("INSERT INTO numbers VALUES (3)")
    assert [row["n"] for row in await database.fetch("SELECT n FROM numbers ORDER BY n")] == [1, 3]


async def test_a_deferred_constraint_raises_out_of_the_block(database):
    await database.execute("CREATE TABLE numbers (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    reached_the_end = False
    with pytest.raises(asyncpg.UniqueViolationError):  # noqa: PT012 - the whole block is what raises
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO numbers VALUES (1), (1)")
            reached_the_end = True
    assert reached_the_end
    assert await database.fetch_value("SELECT count(*) FROM numbers") == 0


async def test_a_transaction_has_the_mode_that_was_asked_for(database):
    async with database.transaction(isolation="serializable", readonly=True, deferrable=True) as transaction:
        assert await transaction.fetch_value("SHOW transaction_isolation") == "serializable"
        assert await transaction.fetch_value("SHOW transaction_deferrable") == "on"
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await transaction.execute("CREATE TABLE numbers (n int)")
    async with database.transaction() as transaction:
        assert await transaction.fetch_value("SHOW transaction_isolation") == "read committed"


async def test_a_transaction_is_of_no_use_after_its_block(database):
    async with database.transaction() as transaction:
        pass
    with pytest.raises(RuntimeError, match="is over"):
        await transaction.fetch("SELECT 1")


async def test_other_errors_of_postgresql_pass_unchanged(database):
    with pytest.raises(asyncpg.UndefinedTableError):
        await database.fetch("SELECT * FROM nowhere")
    with pytest.raises(asyncpg.DataError):
        await database.fetch("SELECT $1::int", "no number")


async def test_a_session_that_the_server_ends_is_a_database_unavailable_and_is_replaced(address, database):
    async with Database(address, size=1) as victim:
        pid = await victim.fetch_value("SELECT pg_backend_pid()")
        async with running(victim.fetch("SELECT pg_sleep(30)")) as slow:
            await eventually(lambda: victim.in_use == 1)
            await database.fetch("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises(DatabaseUnavailable, match="broke during a statement"):
                await slow
        assert await victim.fetch_value("SELECT pg_backend_pid()") != pid


async def test_a_transaction_on_a_session_that_ended_reports_that_and_not_the_rollback(address, database):
    async with Database(address, size=1) as victim:
        with pytest.raises(DatabaseUnavailable):  # noqa: PT012 - the whole block is what raises
            async with victim.transaction() as transaction:
                pid = await transaction.fetch_value("SELECT pg_backend_pid()")
                await database.fetch("SELECT pg_terminate_backend($1)", pid)
                for _ in range(2):
                    with pytest.raises(DatabaseUnavailable):
                        await transaction.fetch("SELECT pg_sleep(30)")
                await transaction.fetch("SELECT 1")
        assert await victim.fetch_value("SELECT 1") == 1


async def test_too_many_connections_is_a_database_unavailable(address, database):
    name = address.database
    await database.execute("CREATE ROLE " + name + " LOGIN CONNECTION LIMIT 1")
    try:
        async with Database(replace(address, user=name), size=2) as limited:
            await limited.execute("SELECT 1")
            refused = pytest.raises(DatabaseUnavailable, match="too many connections")
            async with limited.transaction():
                with refused:
                    await limited.fetch("SELECT 1")
    finally:
        await database.execute("DROP ROLE " + name)


async def test_check_answers_within_its_time(address):
    async with Database(address, size=1) as database:
        await database.check(timeout=1)
        async with database.transaction():
            with pytest.raises(PoolTimeout, match=r"within 0\.1 s"):
                await database.check(timeout=0.1)


async def test_opening_an_unknown_database_fails_at_once(address):
    database = Database(replace(address, database="nowhere"))
    started = asyncio.get_running_loop().time()
    with pytest.raises(DatabaseUnavailable, match=r"refused the login.*\"nowhere\" does not exist"):
        await database.open(timeout=30)
    assert asyncio.get_running_loop().time() - started < 5


async def test_opening_as_an_unknown_role_fails_at_once(address):
    with pytest.raises(DatabaseUnavailable, match="refused the login"):
        await Database(replace(address, user="nobody-here")).open(timeout=30)


async def test_opening_an_unreachable_server_is_tried_until_the_time_is_over(free_tcp_port):
    database = Database(Address(dsn=f"postgresql://me:secret@127.0.0.1:{free_tcp_port}/there"))
    started = asyncio.get_running_loop().time()
    with pytest.raises(DatabaseUnavailable) as caught:
        await database.open(timeout=0.5)
    assert 0.4 < asyncio.get_running_loop().time() - started < 3
    message = str(caught.value)
    assert message.startswith(f"PostgreSQL at 127.0.0.1:{free_tcp_port}/there was not reached within 0.5 s")
    assert "\n" not in message
    assert "secret" not in message


async def test_opening_a_server_that_never_answers_is_bounded():
    async def stay_silent(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        started = asyncio.get_running_loop().time()
        with pytest.raises(DatabaseUnavailable, match=r"not reached within 0\.3 s"):
            await Database(Address(host="127.0.0.1", port=port, user="me")).open(timeout=0.3)
        assert asyncio.get_running_loop().time() - started < 3


async def test_a_closed_database_says_so_and_closes_again(address):
    database = Database(address)
    with pytest.raises(DatabaseUnavailable, match="not open"):
        await database.fetch("SELECT 1")
    await database.open()
    await database.close()
    await database.close()
    assert (database.in_use, database.idle) == (0, 0)
    with pytest.raises(DatabaseUnavailable, match="not open"):
        await database.fetch("SELECT 1")


async def test_closing_does_not_wait_forever_for_a_lent_connection(address, monkeypatch):
    monkeypatch.setattr("freeloop.database.pool._CLOSE_TIMEOUT", 0.2)
    database = Database(address)
    await database.open()
    async with running(database.fetch("SELECT pg_sleep(30)")) as slow:
        await eventually(lambda: database.in_use == 1)
        async with asyncio.timeout(3):
            await database.close()
        with pytest.raises(DatabaseUnavailable):
            await slow


def test_an_address_never_shows_its_password():
    by_dsn = Address(dsn="postgresql://me:secret@a:1,b:2/there?sslmode=disable")
    by_field = Address(host="/run/here", port=5433, user="me", database="there", password="secret")  # noqa: S106 - made up
    assert by_dsn.place == "a:1,b:2/there"
    assert by_field.place == "/run/here:5433/there"
    assert "secret" not in repr([by_dsn, by_field])
    assert by_field.arguments()["password"] == "secret"  # noqa: S105 - made up
    assert by_dsn.arguments() == {"dsn": by_dsn.dsn}
