"""What a database offers beyond plain rows: typed rows, JSON, COPY, cursors, repetition, named statements."""

import asyncio
import dataclasses
import json
from decimal import Decimal
from typing import NamedTuple

import asyncpg
import pytest
from pydantic import BaseModel, ValidationError

from freeloop.database import Database, Statements
from freeloop.errors import PoolTimeout, StatementTimeout
from freeloop.scope import Scope


class Model(BaseModel):
    n: int
    name: str


@dataclasses.dataclass
class Plain:
    n: int
    name: str


class Named(NamedTuple):
    n: int
    name: str


SQL = "select n, 'x' || n as name from generate_series(1, $1) as n"


@pytest.mark.parametrize("kind", [Model, Plain, Named])
async def test_rows_become_the_type_that_is_asked_for(database, kind):
    assert await database.fetch(SQL, 2, into=kind) == [kind(n=1, name="x1"), kind(n=2, name="x2")]
    assert await database.fetch_row(SQL, 1, into=kind) == kind(n=1, name="x1")
    assert await database.fetch_row(SQL, 0, into=kind) is None
    async with database.transaction(readonly=True) as transaction:
        assert [row async for row in transaction.stream(SQL, 3, into=kind)][2] == kind(n=3, name="x3")


async def test_a_row_that_does_not_fit_is_the_models_error(database):
    with pytest.raises(ValidationError):
        await database.fetch("select 'x' as n, 'y' as name", into=Model)
    with pytest.raises(TypeError, match="into= expects"):
        await database.fetch(SQL, 1, into=int)


async def test_json_keeps_digits_and_says_utc(database):
    content = await database.fetch_json(
        "select 12.50::numeric as price, '2026-01-02 03:04:05+01'::timestamptz as at, null as nothing, "
        "$1::text as text",
        'ä"\n',
    )
    assert content.startswith(b'[{"price":12.50,"at":"2026-01-02T02:04:05+00:00","nothing":null')
    assert json.loads(content, parse_float=Decimal)[0]["text"] == 'ä"\n'
    assert await database.fetch_json("select 1 where false") == b"[]"


async def test_copy_writes_all_or_nothing(database):
    await database.execute("create table t (n int primary key, name text)")
    assert await database.copy_in("t", [(1, "a"), (2, None)], columns=["n", "name"]) == 2

    async def rows():
        for n in range(3, 1003):
            yield n, "x"

    assert await database.copy_in("t", rows(), columns=["n", "name"], schema="public") == 1000
    with pytest.raises(asyncpg.UniqueViolationError):
        await database.copy_in("t", [(2000, "a"), (1, "b")], columns=["n", "name"])
    assert await database.fetch_value("select count(*) from t") == 1002


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
async def test_a_stream_has_each_row_once(database, count):
    async with database.transaction(readonly=True) as transaction:
        assert [row["n"] async for row in transaction.stream(SQL, count)] == list(range(1, count + 1))


async def test_a_stream_that_is_left_early_leaves_the_transaction_usable(database):
    async with database.transaction(readonly=True) as transaction:
        async for row in transaction.stream(SQL, 1000, prefetch=10):
            if row["n"] == 15:
                break
        assert await transaction.fetch_value("select 1") == 1


async def test_colliding_transactions_are_repeated_until_both_are_in(address):
    database = Database(address, size=4)
    await database.open()
    try:
        await database.execute("create table counter (n int)")
        await database.execute("insert into counter values (0)")
        runs = 0
        all_have_read = asyncio.Barrier(4)

        async def add(transaction):
            nonlocal runs
            runs += 1
            first = runs <= 4
            n = await transaction.fetch_value("select n from counter")
            if first:  # so that they collide
                await all_have_read.wait()
            await transaction.execute("update counter set n = $1", n + 1)

        await asyncio.gather(*(database.repeat(add, attempts=20) for _ in range(4)))
        assert await database.fetch_value("select n from counter") == 4
        assert runs > 4

        async def fail(transaction):
            nonlocal runs
            runs += 1
            await transaction.execute("do $$ begin raise sqlstate '40001'; end $$")

        runs = 0
        with pytest.raises(asyncpg.SerializationError):
            await database.repeat(fail, attempts=2)
        assert runs == 2
    finally:
        await database.close()


async def test_a_deadlock_is_repeated_too(database):
    await database.execute("create table stock (id int primary key, n int)")
    await database.execute("insert into stock values (1, 0), (2, 0)")
    runs, both = 0, asyncio.Barrier(2)

    async def move(transaction, *ids):
        nonlocal runs
        runs += 1
        first = runs <= 2
        for id_ in ids:
            await transaction.execute("update stock set n = n + 1 where id = $1", id_)
            if first and id_ == ids[0]:  # each holds what the other wants
                await both.wait()

    await asyncio.gather(
        database.repeat(lambda tx: move(tx, 1, 2), isolation="read_committed"),
        database.repeat(lambda tx: move(tx, 2, 1), isolation="read_committed"),
    )
    assert [row["n"] for row in await database.fetch("select n from stock")] == [2, 2]
    assert runs == 3


@pytest.fixture
def statements(tmp_path):
    (tmp_path / "add.sql").write_text("select $1::int + 1;\n")
    return Statements(tmp_path)


async def test_statements_are_counted_by_name(database, statements):
    assert await database.fetch_value(statements["add"], 1) == 2
    async with database.transaction() as transaction:
        await transaction.fetch(statements["add"], 1)
    await database.fetch("select 1")
    assert database.statement_times.counts == {"add": 2}
    assert 0 < database.statement_times.seconds["add"] < 5


def test_wrong_statement_files_and_names_are_told(tmp_path, statements):
    with pytest.raises(KeyError, match="there are: add"):
        statements["sub"]
    (tmp_path / "empty.sql").touch()
    with pytest.raises(ValueError, match="is empty"):
        Statements(tmp_path)
    with pytest.raises(ValueError, match="found none"):
        Statements(tmp_path / "nowhere")


async def test_what_remains_until_the_deadline_bounds_a_statement(database):
    async def work():
        scope = Scope("r", seconds=0.2)
        scope.enter()
        await database.fetch("select pg_sleep(10)")

    began = asyncio.get_running_loop().time()
    with pytest.raises(StatementTimeout, match="deadline"):
        await asyncio.create_task(work())
    assert asyncio.get_running_loop().time() - began < 2
    assert (
        await database.fetch_value(
            "select count(*) from pg_stat_activity where query like '%pg_sleep(10)%' and state = 'active' "
            "and pid <> pg_backend_pid() and datname = current_database()"
        )
        == 0
    )


async def test_a_full_pool_says_who_holds_it_since_when_and_where(address):
    database = Database(address, size=1, acquire_timeout=0.05)
    await database.open()
    begun, end = asyncio.Event(), asyncio.Event()

    async def export():
        Scope("r", route="/export").enter()
        async with database.transaction():
            begun.set()
            await end.wait()

    holding = asyncio.create_task(export())
    try:
        await begun.wait()
        with pytest.raises(PoolTimeout) as caught:
            await database.fetch("select 1")
        detail = caught.value.detail
        assert "(1 of 1 lent; longest held 0." in detail
        assert "s by /export at " in detail
        assert "test_queries.py:" in detail
        assert " in test_a_full_pool" in detail
        assert 0.04 < database.longest_lease < 60
        end.set()
        await holding
        assert database.longest_lease == 0
    finally:
        end.set()
        await database.close()
