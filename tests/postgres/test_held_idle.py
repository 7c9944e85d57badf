"""Nothing holds a connection that it does not use; where a transaction does, its line is named."""

import asyncio
import inspect
import re
import time
from contextlib import asynccontextmanager

import pytest
from fastapi import BackgroundTasks
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from kit_app import kit_app, running

from freeloop import Db, Outbound
from freeloop.database import Database, idle
from freeloop.scope import Scope
from freeloop.testing import eventually
from serving import served, soon

ALLOWED = 0.1  # s that a connection may be out after the query
PACE = 0.02


class Watch:
    """Looks every 20 ms whether a connection is out, while something else runs."""

    def __init__(self, database):
        self._database = database
        self.asked = []
        self.out = []
        self.looks = 0

    async def ask(self, db):
        assert await db.fetch_value("select 1") == 1
        self.asked.append(time.monotonic())

    async def look(self, seconds):
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            self.looks += 1
            # A query that has just been sent may be under way.
            if self._database.in_use and all(now - asked > ALLOWED for asked in self.asked):
                self.out.append(now)
            await asyncio.sleep(PACE)


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.long)])
async def test_streams_and_background_work_hold_nothing_after_their_query(address, seconds):
    app, kit = kit_app(address)
    over = []

    async def parts(db, part):
        await watch.ask(db)
        for _ in range(round(seconds / 0.1)):
            yield part
            await asyncio.sleep(0.1)
        over.append("stream")

    async def work(db, name):
        await watch.ask(db)
        await asyncio.sleep(seconds)
        over.append(name)

    @app.get("/download")
    async def download(db: Db) -> StreamingResponse:
        return StreamingResponse(parts(db, b"part"))

    @app.get("/prepared")
    async def prepare(db: Db) -> StreamingResponse:
        await watch.ask(db)  # in the handler, before the stream begins
        return StreamingResponse(parts(db, b"part"))

    @app.get("/events", response_class=EventSourceResponse)
    async def events(db: Db):
        async for part in parts(db, "part"):
            yield part

    @app.get("/background")
    async def background(db: Db, tasks: BackgroundTasks) -> None:
        tasks.add_task(work, db, "background")

    @app.get("/spawned")
    async def spawned(db: Db) -> None:
        kit.spawn(work, db, "spawned")

    async with served(app, lifespan="on") as (client, _):
        watch = Watch(kit.database)

        async def read(path):
            async with client.get(path) as answer:
                assert answer.status == 200
                await answer.read()

        reading = [
            asyncio.create_task(read(path))
            for path in ("/download", "/prepared", "/events", "/background", "/spawned")
        ]
        await eventually(lambda: len(watch.asked) >= 5)
        await watch.look(seconds)
        await soon(asyncio.gather(*reading), seconds + 10)
        await eventually(lambda: len(over) == 5)
    assert watch.looks > 0.5 * seconds / PACE
    assert watch.out == []


async def test_what_the_watch_looks_for_it_finds(database):
    """The same watch over a transaction that stays open."""
    watch = Watch(database)
    async with database.transaction() as tx:
        await watch.ask(tx)
        await watch.look(3 * ALLOWED)
    assert watch.out


@asynccontextmanager
async def shop(address):
    """An app whose routes call an upstream, itself; gives what calls a route of it, and a client."""
    app, kit = kit_app(address)
    kit.show_console(app)

    @app.get("/upstream")
    async def upstream() -> str:
        return "done"

    @app.post("/inside")
    async def inside(db: Db, outbound: Outbound) -> None:
        async with db.transaction() as tx:
            await tx.fetch_value("select 1")
            await outbound.get(url)  # the line
            await tx.fetch_value("select 1")

    @app.post("/inside/{number}")
    async def deeper(db: Db, outbound: Outbound, number: int) -> None:
        async with db.transaction():
            await asyncio.gather(*(outbound.get(url) for _ in range(number)))  # one line, many calls

    @app.post("/outside")
    async def outside(db: Db, outbound: Outbound) -> None:
        await outbound.get(url)
        async with db.transaction() as tx:
            await tx.fetch_value("select 1")
            await tx.fetch_value("select 2")
        await outbound.get(url)

    @app.post("/beside")
    async def beside(db: Db, outbound: Outbound) -> None:
        """Both at once, none in the other."""

        async def transact():
            async with db.transaction() as tx:
                for _ in range(20):
                    await tx.fetch_value("select pg_sleep(0.001)")

        await asyncio.gather(
            transact(),
            *(db.fetch("select pg_sleep(0.01)") for _ in range(5)),
            *(outbound.get(url) for _ in range(10)),
        )

    @app.post("/failing")
    async def failing(db: Db, outbound: Outbound) -> None:
        async with db.transaction():
            await outbound.get("http://127.0.0.1:1/nobody")

    @app.post("/thread")
    async def thread(db: Db) -> None:
        async with db.transaction():
            await kit.run_sync(time.sleep, 0.01)

    @app.post("/second")
    async def second(db: Db) -> None:
        async with db.transaction():
            await db.fetch_value("select 1")

    @app.post("/spawned")
    async def spawned(db: Db, outbound: Outbound) -> None:
        await kit.spawn(in_the_background, db, outbound)

    async def in_the_background(db, outbound):
        async with db.transaction():
            await outbound.get(url)

    async with running(app) as client:
        url = str(client._base_url.with_path("/upstream"))

        async def call(path, times=1):
            for _ in range(times):
                async with client.post(path) as answer:
                    assert answer.status in {200, 502}
            return kit.database.held_idle.found

        yield call, kit, client


def find_line(text):
    lines, first = inspect.getsourcelines(shop)
    return first + next(number for number, line in enumerate(lines) if text in line)


CALL, TRANSACTION = find_line("# the line"), find_line("async def inside") + 1


async def test_a_call_inside_a_transaction_is_named_once_and_counted_each_time(address, caplog):
    async with shop(address) as (call, kit, _):
        (found,) = await call("/inside", times=3)
        metrics = kit.metrics.render().decode()
    place = f"{__file__}:{CALL} in shop.<locals>.inside"
    assert (found.place, found.route, found.awaited, found.times) == (place, "/inside", "upstream", 3)
    assert found.transaction.endswith(f":{TRANSACTION} in shop.<locals>.inside")
    assert 0 < found.longest < 2
    (record,) = [record for record in caplog.records if "held its connection idle" in record.message]
    assert (record.place, record.route, record.database) == (place, "/inside", "main")
    assert f'freeloop_held_idle_total{{place="{place}",route="/inside"}} 3.0' in metrics


async def test_the_console_shows_it_with_route_and_line(address):
    async with shop(address) as (call, _, client):
        await call("/inside", times=2)
        async with client.get("/console/database.json") as answer:
            assert answer.status == 200
            (shown,) = (await answer.json())["held_idle"]
        async with client.get("/console/database") as answer:
            page = await answer.text()
    assert (shown["place"], shown["route"]) == (f"{__file__}:{CALL} in shop.<locals>.inside", "/inside")
    assert (shown["awaited"], shown["times"]) == ("upstream", 2)
    assert f"test_held_idle.py:{CALL} in shop" in page


@pytest.mark.parametrize("path", ["/outside", "/beside"])
async def test_calls_before_after_and_beside_are_nothing_to_name(address, path):
    async with shop(address) as (call, *_):
        assert await call(path, times=5) == ()


@pytest.mark.parametrize(
    ("path", "route", "awaited", "times"),
    [
        ("/inside/25", "/inside/{number}", "upstream", 1),
        ("/failing", "/failing", "upstream", 1),
        ("/thread", "/thread", "thread", 1),
        ("/second", "/second", "connection", 1),
        ("/spawned", f"{__name__}.shop.<locals>.in_the_background", "upstream", 1),
    ],
)
async def test_what_a_transaction_may_wait_for(address, path, route, awaited, times):
    async with shop(address) as (call, *_):
        (found,) = await call(path)
    assert (found.route, found.awaited, found.times) == (route, awaited, times)


async def test_a_block_that_is_cancelled_while_it_waits_is_named_too(address):
    app, kit = kit_app(address)
    held = asyncio.Event()

    async with running(app), silent_server(held) as port:

        async def work():
            async with kit.database.transaction():
                await kit.outbound.get(f"http://127.0.0.1:{port}/")

        task = kit.spawn(work)
        await soon(held.wait())
        task.cancel()
        await asyncio.wait([task], timeout=5)
        (found,) = kit.database.held_idle.found
    assert found.awaited == "upstream"


@asynccontextmanager
async def silent_server(reached):
    async def hold(reader, writer):
        await reader.readline()
        reached.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("route", ["GET /slow", ""])
async def test_a_transaction_that_does_nothing_for_long_is_named(database, monkeypatch, route):
    if route:
        Scope("r", route=route).enter()
    monkeypatch.setattr(idle, "_LONG", 0.05)
    async with database.transaction() as tx:
        await tx.fetch_value("select pg_sleep(0.1)")  # the server's time, not the block's
    assert database.held_idle.found == ()
    async with database.transaction() as tx:
        await asyncio.sleep(0.06)
        await tx.fetch_value("select 1")
        await asyncio.sleep(0.06)
    (found,) = database.held_idle.found
    assert (found.awaited, found.route, found.times) == ("", route, 2)
    named = rf"{__file__}:\d+ in test_a_transaction_that_does_nothing_for_long_is_named"
    assert re.fullmatch(named if route else r"\(outside of any scope\)", found.place)
    assert 0.05 < found.longest < 1


async def test_statements_of_a_stream_are_no_rest(address, monkeypatch):
    monkeypatch.setattr(idle, "_LONG", 0.05)
    async with Database(address) as database, database.transaction() as tx:
        async for _ in tx.stream("select pg_sleep(0.001) from generate_series(1, 100)", prefetch=10):
            pass
        assert database.held_idle.found == ()
