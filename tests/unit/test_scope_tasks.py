"""What a scope owns: child tasks, leases, the tasks that outlive it; and that nothing is left behind."""

import asyncio
import contextlib
import gc
import json
import logging
import threading
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect

from freeloop import current_scope, deadline
from freeloop.background import Background
from freeloop.gate.exchange import Exchange
from freeloop.outbound import AiohttpTransport, Client
from freeloop.scope import Scope
from freeloop.testing import eventually
from freeloop.threads import ThreadPool
from serving import Ending, connected, forever, gated, kitted, port_of, request_of, served, soon

SOCKETS = "websockets-sansio"


async def get(session, path, **options):
    async with session.get(path, **options) as answer:
        return answer.status, await answer.read()


# Child tasks


async def test_a_child_ends_with_its_request():
    app, ending = FastAPI(), Ending()
    gate = gated(app)

    async def child():
        async with ending:
            await forever()

    @app.get("/")
    async def answer():
        current_scope().start_soon(child)
        await ending.begun.wait()

    async with served(app) as (session, _):
        assert (await get(session, "/"))[0] == 200
        await soon(ending.over.wait())
        assert ending.error is asyncio.CancelledError
        await eventually(lambda: gate.running == 0)


async def test_a_child_ends_with_a_request_that_is_cut():
    app, ending = FastAPI(), Ending()
    gate = gated(app, deadline=0.1)

    async def child():
        async with ending:
            await forever()

    @app.get("/")
    async def hang():
        current_scope().start_soon(child)
        await forever()

    async with served(app) as (session, _):
        assert (await get(session, "/"))[0] == 504
        await soon(ending.over.wait())
        await eventually(lambda: gate.running == 0)


async def test_a_failing_child_stops_no_sibling_and_is_logged_with_the_request_id(caplog):
    app, go_on = FastAPI(), asyncio.Event()
    gated(app)

    async def fail():
        raise ValueError("child failed")

    async def sibling(number):
        await go_on.wait()
        return number

    @app.get("/")
    async def answer():
        scope = current_scope()
        siblings = [scope.start_soon(sibling, number) for number in range(3)]
        failing = scope.start_soon(fail)
        await asyncio.wait([failing])
        assert len(scope.children) == 3
        go_on.set()
        with pytest.raises(ValueError, match="child failed"):
            await failing
        return await asyncio.gather(*siblings)

    async with served(app) as (session, _):
        status, body = await get(session, "/", headers={"X-Request-ID": "the-request"})
        assert (status, json.loads(body)) == (200, [0, 1, 2])
    (record,) = [record for record in caplog.records if record.name == "freeloop.scope"]
    assert (record.levelno, record.message) == (logging.ERROR, "child task failed")
    assert record.task.endswith("fail")
    assert str(record.exc_info[1]) == "child failed"
    assert record.request_id == "the-request"


async def test_a_cancelled_child_is_no_failure(caplog):
    scope = Scope("one")

    async def run():
        scope.enter()
        child = scope.start_soon(forever)
        await asyncio.sleep(0)
        child.cancel()
        await scope.end_children()
        return scope.children

    assert await asyncio.create_task(run()) == ()
    assert not caplog.records


# Work that outlives the request


async def test_spawned_work_outlives_the_request_and_is_held(caplog):
    app, ending, go_on, seen = FastAPI(), Ending(), asyncio.Event(), []
    kit = kitted(app, deadline=5)

    async def work(value, *, more):
        async with ending:
            seen.append((value, more, current_scope().id, current_scope().kind, current_scope().remaining()))
            await go_on.wait()

    @app.get("/")
    async def answer():
        kit.spawn(work, 1, more=2)
        return current_scope().id

    async with served(app, lifespan="on") as (session, _):
        _, body = await get(session, "/")
        await soon(ending.begun.wait())
        await eventually(lambda: kit.gate.running == 0)
        for _ in range(3):
            gc.collect()
        assert len(kit._background) == 1
        assert not ending.over.is_set()
        go_on.set()
        await soon(ending.over.wait())
        assert ending.error is None
        assert seen == [(1, 2, json.loads(body), "background", None)]
        await eventually(lambda: len(kit._background) == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_spawned_work_that_nobody_else_holds_is_not_collected():
    background, over = Background(), asyncio.Event()

    async def work():
        # Held only by the task that waits for it: without the registry, a ring that the collector takes.
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            over.set()

    background.start(work)
    await asyncio.sleep(0)
    for _ in range(3):
        gc.collect()
    await asyncio.sleep(0)
    assert not over.is_set()
    assert len(background) == 1
    background.cancel()
    assert await background.wait(5)
    assert over.is_set()


async def test_a_failure_of_spawned_work_is_logged_counted_and_stops_nothing_else(caplog):
    app, go_on, ending = FastAPI(), asyncio.Event(), Ending()
    kit = kitted(app)

    async def fail():
        raise ValueError("spawned failed")

    async def other():
        async with ending:
            await go_on.wait()

    @app.get("/")
    async def answer():
        kit.spawn(other)
        kit.spawn(fail)

    async with served(app, lifespan="on") as (session, _):
        await get(session, "/", headers={"X-Request-ID": "who-spawned"})
        await eventually(lambda: kit._background.failed == 1)
        assert len(kit._background) == 1
        text = kit.metrics.render().decode()
        assert "freeloop_background_failed_total 1.0" in text
        assert "freeloop_background_running 1.0" in text
        go_on.set()
        await soon(ending.over.wait())
        assert ending.error is None
    (record,) = [record for record in caplog.records if record.name == "freeloop.background"]
    assert (record.message, record.request_id) == ("background execution failed", "who-spawned")
    assert record.function.endswith("fail")


async def test_spawned_work_is_waited_for_at_shutdown_before_the_app_closes_its_own():
    steps = []

    async def lifespan(_):
        yield
        steps.append("app closed")

    app, ending = FastAPI(lifespan=contextlib.asynccontextmanager(lifespan)), Ending()
    kit = kitted(app)

    async def second():
        await asyncio.sleep(0.1)
        steps.append("second")

    async def first():
        async with ending:
            await asyncio.sleep(0.2)
            kit.spawn(second)  # started during the shutdown, and waited for as well
        steps.append("first")

    @app.get("/")
    async def answer():
        kit.spawn(first)

    async with served(app, lifespan="on") as (session, _):
        await get(session, "/")
        await soon(ending.begun.wait())
    assert steps == ["first", "second", "app closed"]


async def test_spawned_work_that_does_not_end_is_cancelled_at_shutdown():
    app, ending = FastAPI(), Ending()
    kit = kitted(app, shutdown_timeout=1)

    async def work():
        async with ending:
            await forever()

    @app.get("/")
    async def answer():
        kit.spawn(work)

    async with served(app, lifespan="on") as (session, _):
        await get(session, "/")
        await soon(ending.begun.wait())
    assert ending.error is asyncio.CancelledError


def test_spawn_takes_async_functions_only():
    async def run():
        with pytest.raises(TypeError, match="spawn expects an async function"):
            Background().start(print, "x")

    asyncio.run(run())


async def test_children_may_clean_up_for_as_long_as_the_setting_says_and_are_then_cancelled_again(caplog):
    """In a background execution and in a WebSocket; those of requests are in the tests of deadlines."""
    app = FastAPI()
    kit = kitted(app, cleanup_timeout=0.05)

    async def stubborn():
        try:
            await forever()
        except asyncio.CancelledError:
            await forever()

    async def parent():
        current_scope().start_soon(stubborn)
        await asyncio.sleep(0)

    @app.get("/")
    async def spawn():
        kit.spawn(parent)

    @app.websocket("/ws")
    async def ws(websocket: WebSocket):
        await websocket.accept()
        await parent()

    def reported():
        return [
            record for record in caplog.records if record.message == "a cancelled child task does not end"
        ]

    async with served(app, lifespan="on", ws=SOCKETS) as (session, server):
        await get(session, "/")
        await eventually(lambda: len(reported()) == 1, within=2)  # the default is 5 s
        await eventually(lambda: len(kit._background) == 0)
        async with socket_to(server, "/ws") as websocket:
            await soon(websocket.wait_closed())
        await eventually(lambda: len(reported()) == 2, within=2)
        await eventually(lambda: kit.gate.websockets == 0)


# The current scope


async def test_the_scope_is_the_same_everywhere_under_a_request():
    app, seen = FastAPI(), {}
    kit = kitted(app)

    def note(where):
        scope = current_scope()
        seen[where] = (scope.id, scope.kind, scope.route) if scope else None

    async def child():
        note("child")
        await asyncio.create_task(grandchild())

    async def grandchild():
        note("grandchild")

    def dependency():
        note("def dependency")
        yield
        note("def dependency's end")

    async def generator():
        note("dependency")
        yield
        note("dependency's end")

    @app.middleware("http")
    async def layer(request: Request, call_next):
        note("middleware")
        return await call_next(request)

    @app.get("/scopes/{name}", dependencies=[Depends(dependency), Depends(generator)])
    async def show(name: str):
        note("handler")
        await current_scope().start_soon(child)
        await kit.run_sync(note, "run_sync")
        await asyncio.to_thread(note, "to_thread")

        async def body():
            note("stream")
            yield b"part"

        return StreamingResponse(body())

    @app.get("/sync/{name}")
    def sync(name: str):
        note("def route")

        def body():
            note("sync stream")
            yield b"part"

        return StreamingResponse(body())

    async with served(app, lifespan="on") as (session, _):
        await get(session, "/scopes/x?y", headers={"X-Request-ID": "one"})
        await get(session, "/sync/x", headers={"X-Request-ID": "two"})
    assert len(seen) == 13
    for where in ("def route", "sync stream", "middleware"):
        assert seen.pop(where) == ("two", "http", "/sync/{name}")
    assert set(seen.values()) == {("one", "http", "/scopes/{name}")}, seen
    assert current_scope() is None


# WebSockets


@pytest.fixture
async def socket_app():
    app = FastAPI()
    app.ending = Ending()
    app.child = Ending()

    @app.websocket("/rooms/{name}")
    async def room(websocket: WebSocket, name: str):
        await websocket.accept()
        scope = current_scope()
        scope.start_soon(child)
        async with app.ending:
            await websocket.send_json([scope.id, scope.kind, scope.route, scope.remaining()])
            await websocket.receive_text()

    async def child():
        async with app.child:
            await forever()

    @app.websocket("/fail")
    async def fail(websocket: WebSocket):
        await websocket.accept()
        raise RuntimeError("socket failed")

    @app.get("/hang")
    async def hang():
        await forever()

    return app


def socket_to(server, path, **options):
    return connect(f"ws://127.0.0.1:{port_of(server)}{path}", **options)


async def test_a_websocket_is_a_scope_without_deadline_and_counted_apart(socket_app):
    gate = gated(socket_app, deadline=0.1)
    async with served(socket_app, ws=SOCKETS) as (_, server):
        async with socket_to(server, "/rooms/a", additional_headers={"X-Request-ID": "ws"}) as websocket:
            assert json.loads(await soon(websocket.recv())) == ["ws", "websocket", "/rooms/{name}", None]
            assert (gate.websockets, gate.running, gate.streams) == (1, 0, 0)
            await soon(socket_app.child.begun.wait())
            await asyncio.sleep(0.25)  # longer than the deadline of requests: nothing is to happen
            assert not socket_app.ending.over.is_set()
        await soon(socket_app.child.over.wait())
        assert socket_app.ending.error is WebSocketDisconnect
        await eventually(lambda: gate.websockets == 0)


async def test_a_websocket_that_fails_is_forgotten(socket_app):
    gate = gated(socket_app)
    async with served(socket_app, ws=SOCKETS) as (_, server):
        async with socket_to(server, "/fail") as websocket:
            await soon(websocket.wait_closed())
        await eventually(lambda: gate.websockets == 0)


async def test_websockets_are_cancelled_at_the_drain_and_their_children_with_them(socket_app):
    gate = gated(socket_app)
    async with served(socket_app, ws=SOCKETS) as (_, server):
        async with socket_to(server, "/rooms/a") as websocket:
            await soon(websocket.recv())
            await soon(socket_app.child.begun.wait())
            gate.drain()
            assert not socket_app.ending.over.is_set()
            idle = asyncio.create_task(gate.wait_idle())
            await asyncio.sleep(0)
            gate.cancel()
            await soon(socket_app.ending.over.wait())
            assert socket_app.ending.error is asyncio.CancelledError
            await soon(socket_app.child.over.wait())
            await soon(idle)
        assert gate.websockets == 0


async def test_websockets_that_were_told_to_close_are_cancelled_a_second_later(socket_app):
    gate = gated(socket_app)
    async with served(socket_app, ws=SOCKETS) as (_, server):
        async with socket_to(server, "/rooms/a") as websocket:
            await soon(websocket.recv())
            loop = asyncio.get_running_loop()
            told = loop.time()
            gate.close_streams()
            await soon(socket_app.ending.over.wait())
            assert loop.time() - told >= 0.99
            assert socket_app.ending.error is asyncio.CancelledError
        await eventually(lambda: gate.websockets == 0)


# Leases


LINES = Path(__file__).read_text().splitlines()


def line_of(function, text):
    first = function.__code__.co_firstlineno
    return next(number for number in range(first, len(LINES)) if text in LINES[number - 1])


async def test_a_lease_names_the_line_of_the_app_that_borrowed_a_connection(database):
    app, places = FastAPI(), []
    gated(app)

    @app.get("/")
    async def transact():
        async with database.transaction() as transaction:  # borrowed here
            await transaction.fetch_value("SELECT 1")
            (lease,) = current_scope().leases
            places.append((lease.kind, lease.name, lease.place))
        assert current_scope().leases == ()
        await database.fetch_value("SELECT 1")

    async with served(app) as (session, _):
        assert (await get(session, "/"))[0] == 200
    line = line_of(transact, "borrowed here")
    assert places == [("connection", "test", f"{__file__}:{line} in {transact.__qualname__}")]


async def test_a_lease_names_the_line_that_made_a_call_and_that_used_a_thread():
    app, upstream, hold, calls = FastAPI(), FastAPI(), asyncio.Event(), Ending()
    gated(app)
    client, pool, release = Client(AiohttpTransport()), ThreadPool("calls"), threading.Event()

    @upstream.get("/")
    async def wait():
        async with calls:
            await hold.wait()

    begun = threading.Event()

    def block():
        begun.set()
        release.wait(5)

    app.state.url = ""

    @app.get("/")
    async def both():
        scope = current_scope()
        call = scope.start_soon(client.get, app.state.url)
        thread = asyncio.create_task(through_a_function(pool, block))
        await calls.begun.wait()
        await asyncio.to_thread(begun.wait, 5)
        leases = {lease.kind: (lease.name, lease.place) for lease in scope.leases}
        release.set()
        hold.set()
        await asyncio.gather(call, thread)
        return [leases, len(scope.leases)]

    async def through_a_function(pool, block):
        await pool.run(block)  # the thread

    @app.get("/direct")
    async def direct():
        calling = asyncio.create_task(call_it())
        await asyncio.sleep(0)
        call, connection = current_scope().leases  # which is there from the call before
        await calling
        return [call.place, connection.place]

    async def call_it():
        await client.get(app.state.url)  # the call

    async with served(upstream) as (at, _), served(app) as (session, _):
        app.state.url = str(at._base_url)
        status, body = await get(session, "/")
        assert status == 200
        leases, left = json.loads(body)
        assert leases.keys() == {"upstream", "socket", "thread"}
        assert leases["upstream"][0] == app.state.url
        assert leases["socket"][0] == app.state.url.removeprefix("http://")
        assert leases["thread"] == [
            "calls",
            f"{__file__}:{line_of(through_a_function, 'the thread')} in {through_a_function.__qualname__}",
        ]
        assert left == 0
        _, body = await get(session, "/direct")
        place = f"{__file__}:{line_of(call_it, 'the call')} in {call_it.__qualname__}"
        assert json.loads(body) == [place, place]
    await client.close()


async def test_leases_come_back_from_a_request_that_is_cut(database):
    app, scopes = FastAPI(), []
    gate = gated(app, deadline=0.1)

    @app.get("/")
    async def hang():
        scopes.append(current_scope())
        async with database.transaction() as transaction:
            await transaction.fetch_value("SELECT pg_sleep(20)")

    async with served(app) as (session, _):
        assert (await get(session, "/"))[0] == 504
        await eventually(lambda: gate.running == 0)
        assert scopes[0].leases == ()
        await eventually(lambda: database.in_use == 0)


# Nothing is left


async def test_no_request_is_left_to_the_garbage_collector(caplog):
    # A record of a failure keeps its traceback, and pytest keeps the records.
    caplog.set_level(logging.CRITICAL)
    app = FastAPI()
    gate = gated(app, deadline=5)

    @app.get("/answer")
    async def answer():
        return "done"

    @app.get("/child")
    async def child():
        await current_scope().start_soon(asyncio.sleep, 0)
        current_scope().start_soon(forever)

    @app.get("/fail")
    async def fail():
        raise RuntimeError("failed")

    @app.get("/stream")
    async def stream():
        async def body():
            yield b"part"
            yield b"part"

        return StreamingResponse(body())

    @app.get("/cut")
    @deadline(0.05)
    async def cut():
        with current_scope().borrow("thread", "x"):
            await forever()

    @app.get("/late")
    @deadline(0.05)
    async def late():
        await forever()

    hold = asyncio.Event()

    @app.get("/hold")
    async def held():
        await hold.wait()

    async def get(session, path):
        # uvicorn's timer for idle connections keeps the context of the last request on each.
        async with session.get(path, headers={"Connection": "close"}) as answer:
            return answer.status, await answer.read()

    def living():
        # The gate is this test's; what others have left is theirs.
        return [
            found
            for found in gc.get_objects()
            if type(found) is Exchange and found.bulkhead in list(gate.bulkheads)
        ]

    async with served(app) as (session, server):
        gc.collect()
        gc.disable()
        try:
            # One that is running all the time keeps the sweep's timer going from one to the next.
            holding = asyncio.create_task(get(session, "/hold"))
            await eventually(lambda: gate.running == 1)
            for _ in range(250):
                for path in ("/answer", "/child", "/stream"):
                    assert (await get(session, path))[0] == 200
            for _ in range(150):
                assert (await get(session, "/fail"))[0] == 500
            assert {
                status for status, _ in await asyncio.gather(*(get(session, "/late") for _ in range(100)))
            } == {504}
            for _ in range(30):
                async with connected(server, request_of("/hold")) as (_, writer):
                    await eventually(lambda: gate.running == 2)
                    writer.transport.abort()
                    await eventually(lambda: gate.running == 1)
            hold.set()
            await holding
            await eventually(lambda: gate.running == 0)
            await eventually(lambda: gate._reaper._timer is None)
            left = living()
            assert left == []
        finally:
            gc.enable()
