"""Shared reads against PostgreSQL: what each caller sees, what it costs, and who ends what."""

import asyncio
import random
import traceback
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from items_service import connect, serve_items

from freeloop.database import Database, pool
from freeloop.errors import DatabaseUnavailable, PoolTimeout, StatementTimeout
from freeloop.scope import Scope, current_scope
from freeloop.testing import eventually
from linearizability import History

# Each run takes a number; then it waits as long as the gate is shut.
RUN = "select nextval('runs')::int, pg_advisory_xact_lock_shared(1)"
WAITING = (
    "select count(*) from pg_stat_activity where datname = current_database() and query like '%nextval%'"
    " and wait_event = 'advisory'"
)


@pytest.fixture
async def gate(address, database):
    """A connection of its own that has shut the gate."""
    await database.execute("create sequence runs")
    async with connect(address) as connection:
        await connection.execute("select pg_advisory_lock(1)")
        yield connection


async def open_gate(gate):
    await gate.execute("select pg_advisory_unlock(1)")


def waiting(gate, number):
    async def wait():
        return await gate.fetchval(WAITING) == number

    return eventually(wait)


def take_number(rows):
    return rows[0][0]


def seats(database):
    return sum(len(flight.seats) for flight in database._shared._departures.flights())


@asynccontextmanager
async def asking(database, number, sql=RUN, *args, encode=take_number):
    """One that is alone and runs, and a number of others that wait for the query after it."""
    lone = asyncio.create_task(database.shared(sql, *args, encode=encode))
    await eventually(lambda: database.in_use == 1)
    others = [asyncio.create_task(database.shared(sql, *args, encode=encode)) for _ in range(number)]
    try:
        await eventually(lambda: seats(database) == number)
        yield lone, others
    finally:
        for task in (lone, *others):
            task.cancel()
        await asyncio.wait([lone, *others], timeout=10)


async def answers(tasks):
    async with asyncio.timeout(10):
        return await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------- what each caller sees


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # each example has counters of its own
@given(
    seed=st.integers(0, 2**32), readers=st.integers(1, 16), writers=st.integers(1, 6), size=st.integers(1, 4)
)
async def test_reads_and_writes_are_linearizable(address, database, seed, readers, writers, size):
    rng = random.Random(seed)  # noqa: S311 - interleavings, no secret
    await database.execute("create table if not exists counters (id bigserial primary key, n int not null)")
    keys = [await database.fetch_value("insert into counters (n) values (0) returning id") for _ in range(2)]
    histories = {key: History() for key in keys}
    small = Database(address, size=size, acquire_timeout=30)
    await small.open()

    async def pause():
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.002)

    async def write():
        for _ in range(8):
            key = rng.choice(keys)
            started = histories[key].begin()
            value = await database.fetch_value("update counters set n = n + 1 where id = $1 returning n", key)
            histories[key].end("write", value, started)
            await pause()

    async def read():
        for _ in range(8):
            key = rng.choice(keys)
            started = histories[key].begin()
            asking = small.shared("select n from counters where id = $1", key, encode=take_number)
            if rng.random() < 0.2:
                with suppress(TimeoutError):
                    async with asyncio.timeout(rng.random() * 0.002):
                        await asking
            else:
                histories[key].end("read", await asking, started)
            await pause()

    try:
        async with asyncio.timeout(30):
            await asyncio.gather(*(read() for _ in range(readers)), *(write() for _ in range(writers)))
        await eventually(lambda: len(small._shared) == 0 and small.in_use == 0)
    finally:
        await small.close()
    for history in histories.values():
        assert history.find_violation() is None


async def test_a_caller_is_not_answered_by_a_query_that_was_sent_before_it_asked(database, gate):
    await database.execute("create table counter as select 0 as n")
    sql = "select (select n from counter), nextval('runs'), pg_advisory_xact_lock_shared(1)"
    async with asking(database, 2, sql) as (lone, early):
        await gate.execute("update counter set n = 1")
        lone.cancel()  # its query ends, and the one of the early callers is sent
        await eventually(lambda: all(flight.departed for flight in database._shared._departures.flights()))
        await waiting(gate, 1)
        await gate.execute("update counter set n = 2")
        late = [asyncio.create_task(database.shared(sql, encode=take_number)) for _ in range(3)]
        await eventually(lambda: seats(database) == 5)
        await open_gate(gate)
        assert await answers(early) == [1, 1]
        assert await answers(late) == [2, 2, 2]


# ---------------------------------------------------------------- what it costs


async def test_all_that_wait_are_answered_by_one_query_and_one_encoding(database, gate):
    encoded = []

    def encode(rows):
        encoded.append(rows[0][0])
        return b"%d" % rows[0][0]

    async with asking(database, 50, encode=encode) as (lone, others):
        assert database.in_use == 1
        await open_gate(gate)
        assert await answers([lone, *others]) == [b"1", *[b"2"] * 50]
    assert encoded == [1, 2]
    assert len(database._shared) == 0


async def test_reads_that_differ_in_anything_are_not_shared(database, gate):
    sql = RUN + ", $1::text"
    calls = [
        lambda: database.shared(sql, "a", encode=take_number),
        lambda: database.shared(sql, "b", encode=take_number),
        lambda: database.shared(sql + " ", "a", encode=take_number),
        lambda: database.shared(sql, "a", encode=str),
    ]
    tasks = [asyncio.create_task(call()) for call in calls]
    await waiting(gate, 4)
    await open_gate(gate)
    assert await gate.fetchval("select last_value from runs") == 4
    await answers(tasks)


async def test_what_cannot_be_compared_is_read_by_each(database, gate):
    sql = RUN + ", $1::int4range"
    tasks = [
        asyncio.create_task(database.shared(sql, asyncpg.Range(1, 2), encode=take_number)) for _ in range(3)
    ]
    await waiting(gate, 3)
    await open_gate(gate)
    assert sorted(await answers(tasks)) == [1, 2, 3]


async def test_lists_are_compared_by_value_as_they_were_when_asked(database, gate):
    sql = "select array_length($1::int[], 1), nextval('runs'), pg_advisory_xact_lock_shared(1)"
    mine = [1, 2]
    async with asking(database, 0, sql, [1, 2]) as (lone, _):
        first = asyncio.create_task(database.shared(sql, mine, encode=take_number))
        await eventually(lambda: seats(database) == 1)
        second = asyncio.create_task(database.shared(sql, [1, 2], encode=take_number))
        await eventually(lambda: seats(database) == 2)
        mine.append(3)
        first.cancel()
        await open_gate(gate)
        assert await answers([lone, second]) == [2, 2]
    assert await gate.fetchval("select last_value from runs") == 2


async def test_a_full_pool_is_queued_for_once_and_by_one(address, database, gate):
    small = Database(address, size=1, acquire_timeout=0.5)
    await small.open()
    try:
        await open_gate(gate)
        async with small.transaction():
            tasks = [asyncio.create_task(small.shared(RUN, encode=take_number)) for _ in range(20)]
            await eventually(lambda: small.waiting == 2)
            started = asyncio.get_running_loop().time()
            assert {type(error) for error in await answers(tasks)} == {PoolTimeout}
            assert asyncio.get_running_loop().time() - started < 0.5 + 0.4
        async with small.transaction():
            tasks = [asyncio.create_task(small.shared(RUN, encode=take_number)) for _ in range(20)]
            await eventually(lambda: seats(small) == 19)
        assert await answers(tasks) == [1, *[2] * 19]
    finally:
        await small.close()


async def test_different_reads_leave_nothing_behind(database):
    async def read(start):
        for number in range(start, start + 200):
            assert await database.shared("select $1::int", number, encode=take_number) == number

    await asyncio.gather(*(read(start) for start in range(0, 2_000, 200)))
    assert len(database._shared) == 0


# ---------------------------------------------------------------- whose answer it is


async def test_each_caller_has_a_list_of_its_own(database, gate):
    async with asking(database, 2, encode=None) as (_, others):
        await open_gate(gate)
        ours, theirs = await answers(others)
    assert ours == theirs
    ours.clear()
    assert len(theirs) == 1


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("change", [list, lambda rows: {"n": rows[0][0]}, lambda rows: (row for row in rows)])
async def test_an_answer_that_callers_could_spoil_is_refused_also_to_one(database, gate, others, change):
    async with asking(database, others, encode=change) as (lone, tasks):
        await open_gate(gate)
        errors = await answers([lone, *tasks])
    assert {type(error) for error in errors} == {TypeError}
    assert "bytes, str, a tuple" in str(errors[0])


async def test_no_caller_shapes_the_answer_of_others(database, gate):
    user = ContextVar("user", default="nobody")
    user.set("somebody")

    def encode(_):
        return user.get(), current_scope()

    async with asking(database, 2, encode=encode) as (lone, others):
        await open_gate(gate)
        assert await answers([lone, *others]) == [("nobody", None)] * 3


async def test_an_error_reaches_each_as_its_own_and_the_next_flight_starts_anew(database, gate):
    await database.execute("create table divisor as select 0 as n")
    sql = "select nextval('runs'), pg_advisory_xact_lock_shared(1), 1 / (select n from divisor)"
    async with asking(database, 3, sql) as (lone, others):
        await open_gate(gate)
        errors = await answers([lone, *others])
        assert {type(error) for error in errors} == {asyncpg.DivisionByZeroError}
        assert {str(error) for error in errors} == {"division by zero"}
        assert len({id(error) for error in errors}) == 4
        for error in errors[1:]:
            frames = traceback.format_tb(error.__traceback__)
            assert sum("return await seat" in frame for frame in frames) == 1
    await gate.execute("update divisor set n = 1")
    assert await database.shared(sql, encode=take_number) == 3


async def test_a_connection_that_breaks_is_our_own_error_for_each(database, gate):
    async with asking(database, 3) as (lone, others):
        lone.cancel()
        await waiting(gate, 1)
        await eventually(lambda: all(flight.departed for flight in database._shared._departures.flights()))
        await gate.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and wait_event = 'advisory'"
        )
        errors = await answers(others)
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    assert len({id(error) for error in errors}) == 3


# ---------------------------------------------------------------- who ends what


async def test_a_cancelled_caller_leaves_the_others_alone_and_the_last_ends_the_query(database, gate):
    async with asking(database, 4) as (lone, others):
        lone.cancel()
        await waiting(gate, 1)
        await eventually(lambda: all(flight.departed for flight in database._shared._departures.flights()))
        for task in others[:3]:
            task.cancel()
        await asyncio.wait(others[:3], timeout=5)
        assert not others[3].done()
        assert await gate.fetchval(WAITING) == 1
        others[3].cancel()
        async with asyncio.timeout(0.5):
            await waiting(gate, 0)
    await eventually(lambda: len(database._shared) == 0)
    assert await gate.fetchval("select last_value from runs") == 2


async def test_who_asks_after_all_have_gone_starts_at_once(database, gate):
    async with asking(database, 1) as (lone, (last,)):
        lone.cancel()
        await asyncio.wait([lone], timeout=5)  # until then the query that waits is its own
        await eventually(lambda: all(flight.departed for flight in database._shared._departures.flights()))
        await waiting(gate, 1)
        last.cancel()
        await asyncio.wait([lone, last], timeout=5)
        await open_gate(gate)
        assert await database.shared(RUN, encode=take_number) == 3


async def test_a_deadline_ends_the_wait_of_its_caller_only_and_is_booked_as_sql(database, gate):
    scope = Scope("hurried", seconds=0.2)

    async def hurry():
        scope.enter()
        await database.shared(RUN, encode=take_number)

    async with asking(database, 1) as (_, (patient,)):
        hurried = asyncio.create_task(hurry())
        [error] = await answers([hurried])
        assert isinstance(error, StatementTimeout)
        assert "deadline" in str(error)
        assert scope.times()["sql"] == pytest.approx(0.2, abs=0.15)
        assert not patient.done()
        await open_gate(gate)
        assert await answers([patient]) == [2]


async def test_close_ends_those_that_run_and_those_that_wait(address, database, gate, monkeypatch):
    monkeypatch.setattr(pool, "_CLOSE_TIMEOUT", 0.3)
    closing = Database(address)
    await closing.open()
    async with asking(closing, 3) as (lone, others):
        async with asyncio.timeout(3):
            await closing.close()
        errors = await answers([lone, *others])
    assert {type(error) for error in errors} == {DatabaseUnavailable}
    await eventually(lambda: len(closing._shared) == 0)


# ---------------------------------------------------------------- the service


async def test_requests_for_the_same_page_share_its_query(address, database):
    await database.execute("insert into items (name, price) select 'n', n from generate_series(1, 30) as n")
    async with serve_items(database) as (client, _), connect(address) as writer:

        async def get(limit):
            async with client.get(f"/items?limit={limit}") as answer:
                return answer.status, await answer.read()

        async with writer.transaction():
            await writer.execute("lock table items in access exclusive mode")
            tasks = [asyncio.create_task(get(10)) for _ in range(20)]
            await eventually(lambda: seats(database) == 19)
            # Two where the first still waited for its connection when the others came.
            assert database.in_use <= 2
        pages = await answers(tasks)
        assert {status for status, _ in pages} == {200}
        assert len({body for _, body in pages}) == 1
        assert pages[0][1].count(b'"id"') == 10
        assert pages[0][1].endswith(b'"next":10}')
        assert (await get(5))[1].endswith(b'"next":5}')
