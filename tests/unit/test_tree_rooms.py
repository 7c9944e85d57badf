"""What the tree says of tasks that wait in the rooms of Freeloop: the pool, PostgreSQL, external APIs."""

import asyncio

import asyncpg
import pytest

from freeloop.database import Database
from freeloop.outbound import AiohttpTransport, Client, Coalesce
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.outbound.rate import Rate, RateLimit
from freeloop.scope import Scope
from freeloop.testing import eventually
from tree_looks import look, running


def under(route, function):
    """Run an async function as a request of a route."""

    async def request():
        scope = Scope(f"id-of-{route}", kind="http", route=route, seconds=30)
        scope.enter()
        try:
            await function()
        finally:
            scope.leave()

    return request()


@pytest.fixture
async def small(address):
    database = Database(address, size=1, name="small", acquire_timeout=20)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def silent():
    """An upstream that takes calls and never answers; gives its URL and counts the calls."""
    calls = []

    async def hold(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        calls.append(1)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1")
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}/rates?key=secret", calls
    server.close()


async def test_who_waits_for_a_connection_is_told_who_holds_it(small):
    held = asyncio.Event()

    async def hold():
        async with small.transaction() as transaction:
            await transaction.execute("SELECT 1")
            held.set()
            await asyncio.sleep(60)

    async def ask():
        await held.wait()
        await small.fetch("SELECT 2")

    async with running(holder=under("/export", hold), waiter=under("/items", ask)):
        await eventually(lambda: small.waiting == 1)
        seen = await look()
    wait = seen["waiter"].wait
    assert wait.kind == "connection"
    assert "pool 'small' (1 of 1 lent)" in wait.text
    assert not wait.at_least
    assert 0 <= wait.seconds < 20
    assert wait.seconds + wait.ends_in == pytest.approx(20, abs=0.1)
    (holder,) = wait.holders
    assert holder.task == seen["holder"].id
    assert holder.name == "/export (holder)"
    assert __file__ in holder.place
    assert holder.seconds is not None
    assert seen.on("waiter") == {"holder"}
    assert not seen.snapshot.deadlocks


async def test_requests_that_hold_each_others_last_connections_are_a_deadlock(address):
    database = Database(address, size=2, name="pair", acquire_timeout=20)
    await database.open()
    both = asyncio.Barrier(2)

    async def nest():
        async with database.transaction():
            await both.wait()
            await database.fetch("SELECT 1")  # a second connection, while holding one

    try:
        async with running(a=under("/a", nest), b=under("/b", nest)):
            await eventually(lambda: database.waiting == 2)
            seen = await look()
    finally:
        await database.close()
    (deadlock,) = seen.snapshot.deadlocks
    assert {seen.names[number] for number in (*deadlock.tasks, *deadlock.behind)} == {"a", "b"}


async def test_a_statement_is_shown_that_postgresql_works_on(small):
    async with running(query=under("/slow", lambda: small.fetch("SELECT pg_sleep(60)"))):

        async def works():
            return (await look())["query"].wait.kind == "statement"

        await eventually(works)
        seen = await look()
    assert seen["query"].wait.text == "PostgreSQL: SELECT pg_sleep(60)"
    (scope,) = seen.snapshot.scopes
    assert [lease.name for lease in scope.leases] == ["connection small"]


async def test_a_pool_of_asyncpg_alone_names_who_holds_its_connections(address):
    async with asyncpg.create_pool(**address.arguments(), min_size=1, max_size=1) as pool:

        async def hold():
            async with pool.acquire():
                await asyncio.sleep(60)

        async def want():
            async with pool.acquire():
                pass

        async with running(holder=hold(), waiter=want()):
            seen = await look()
    assert seen["waiter"].wait.kind == "connection"
    assert seen.on("waiter") == {"holder"}


async def test_a_call_names_the_upstream_without_the_values_of_its_query(silent):
    url, calls = silent
    client = Client(AiohttpTransport())
    async with client, running(caller=under("/rates", lambda: client.get(url, timeout=30))):
        await eventually(lambda: calls)
        seen = await look()
    wait = seen["caller"].wait
    assert wait.kind == "upstream"
    assert url.partition("?")[0] in wait.text
    assert "secret" not in wait.text
    assert not wait.at_least
    (scope,) = seen.snapshot.scopes
    assert [lease.name.partition(" ")[0] for lease in scope.leases] == ["upstream", "socket"]


@pytest.mark.parametrize(
    "layer",
    [
        lambda inner: Bulkhead(inner, lambda _: Compartment(most=1)),
        lambda inner: RateLimit(inner, lambda _: Rate(1 / 20)),
    ],
)
async def test_a_call_that_is_not_sent_yet_waits_for_its_turn(silent, layer):
    url, calls = silent
    async with Client(layer(AiohttpTransport())) as client, running(a=client.get(url, timeout=40)):
        await eventually(lambda: calls)
        async with running(b=client.get(url, timeout=40)):
            seen = await look()
    assert seen["a"].wait.kind == "upstream"
    assert seen["b"].wait.kind == "turn"
    assert len(calls) == 1


async def test_a_call_that_waits_for_anothers_answer_says_so(silent):
    url, calls = silent
    client = Client(Coalesce(AiohttpTransport()))
    async with client, running(a=client.get(url, timeout=40), b=client.get(url, timeout=40)):
        await eventually(lambda: calls)
        seen = await look()
    assert seen["a"].wait.kind == seen["b"].wait.kind == "shared"
    assert seen["shared call"].wait.kind == "upstream"
