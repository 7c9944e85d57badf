"""The thread pool: bounded, and true to its count also when callers leave."""

import asyncio
import contextlib
import contextvars
import gc
import io
import logging
import threading
from typing import Annotated

import aiohttp
import fastapi.routing
import pytest
import starlette.concurrency
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, UploadFile, WebSocket
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from freeloop import deadline, priority
from freeloop.errors import ThreadsBusy
from freeloop.scope import Scope
from freeloop.testing import eventually
from freeloop.threads import ThreadPool, adopt_sync_routes, open_threads
from serving import kitted, served, soon


async def test_it_returns_the_result_and_raises_the_error():
    pool = ThreadPool("test", size=1)
    assert await pool.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 7, 0)
    await settle(pool)
    assert await pool.run(threading.current_thread) is not threading.current_thread()


async def test_a_full_pool_refuses_in_time_and_says_how_full_it_is():
    pool = ThreadPool("test", size=1, acquire_timeout=0.05)
    hold = threading.Event()
    busy = asyncio.create_task(pool.run(hold.wait))
    while not pool.in_use:
        await asyncio.sleep(0)
    with pytest.raises(ThreadsBusy, match=r"'test' came free within 0\.05 s \(1 of 1 busy\)"):
        await pool.run(hold.wait)
    hold.set()
    await busy
    await settle(pool)


async def test_an_abandoned_call_counts_until_it_returns():
    pool = ThreadPool("test", size=1, acquire_timeout=5)
    begun, hold = threading.Event(), threading.Event()

    def work():
        begun.set()
        hold.wait()

    caller = asyncio.create_task(pool.run(work))
    await asyncio.to_thread(begun.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert pool.in_use == 1
    hold.set()
    await pool.run(int)
    await settle(pool)


async def test_cancelled_callers_leak_no_place():
    pool = ThreadPool("test", size=3, acquire_timeout=5)
    for round_ in range(200):
        callers = [asyncio.create_task(pool.run(int)) for _ in range(6)]
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    await settle(pool)
    assert await asyncio.gather(*(pool.run(int) for _ in range(6))) == [0] * 6


def pools_of(kit):
    return kit._resources.threads.get()


async def settle(pool):
    async with asyncio.timeout(5):
        while pool.in_use:
            await asyncio.sleep(0.001)


# In an app


@pytest.fixture
def release():
    """Lets every blocked thread of a test go, also where it fails."""
    event = threading.Event()
    yield event
    event.set()


async def fetch(session, path, **options):
    async with session.get(path, **options) as answer:
        return answer.status, await answer.read()


async def test_forty_slow_routes_stop_no_health_check(release):
    app = FastAPI()
    kit = kitted(app, route_threads=40)
    app.state.pools = []

    def dependency():
        app.state.pools.append(pools_of(kit).critical.in_use)

    @app.get("/slow")
    def slow():
        release.wait(20)
        return "slow"

    @app.get("/healthz")
    def probe():
        app.state.pools.append(pools_of(kit).critical.in_use)
        return "well"

    @app.get("/mine")
    @priority("critical")
    async def mine(_: Annotated[None, Depends(dependency)]):
        return "well"

    @app.post("/upload")
    @priority("critical")
    async def upload(file: UploadFile):
        await file.seek(0)
        # Larger than what Starlette keeps in memory: each read is a thread's.
        return len(await file.read())

    async with served(app, lifespan="on") as (session, _):
        slows = [asyncio.create_task(fetch(session, "/slow")) for _ in range(60)]
        await eventually(lambda: pools_of(kit).routes.in_use == 40 and pools_of(kit).routes.waiting == 20)
        text = kit.metrics.render().decode()
        assert 'freeloop_threads_in_use{pool="routes"} 40.0' in text
        assert 'freeloop_threads_waiting{pool="routes"} 20.0' in text
        assert 'freeloop_threads_limit{pool="routes"} 40.0' in text
        for path in ("/healthz", "/mine"):
            assert await soon(fetch(session, path)) == (200, b'"well"')
        async with session.post("/upload", data={"file": io.BytesIO(b"x" * 3_000_000)}) as answer:
            assert await soon(answer.json()) == 3_000_000
        # run_sync has its own as well.
        assert await soon(kit.run_sync(int)) == 0
        assert not any(slow.done() for slow in slows)
        assert app.state.pools == [1, 1]
        release.set()
        assert set(await soon(asyncio.gather(*slows), 20)) == {(200, b'"slow"')}
        await settle(pools_of(kit).routes)


async def test_a_full_pool_is_503_in_an_app_with_a_kit_and_in_one_without(release):
    for wrap in (False, True):
        app, hold = FastAPI(), threading.Event()
        kit = kitted(None if wrap else app, route_threads=1)

        @app.get("/slow")
        def slow():
            hold.wait(20)  # noqa: B023 - one app per round

        @app.get("/")
        @deadline(5)
        def quick(): ...

        target = kit.wrap(app) if wrap else app
        async with contextlib.AsyncExitStack() as stack:
            if wrap:
                await stack.enter_async_context(kit.open())
                session, _ = await stack.enter_async_context(served(target))
            else:
                session, _ = await stack.enter_async_context(served(target, lifespan="on"))
            stack.callback(hold.set)
            slow_one = asyncio.create_task(fetch(session, "/slow"))
            await eventually(lambda: pools_of(kit).routes.in_use == 1)  # noqa: B023 - as above
            pools_of(kit).routes.acquire_timeout = 0.05
            async with session.get("/") as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "1"
                text = await answer.text()
                assert "FREELOOP_ROUTE_THREADS" in text
                assert answer.content_type == "application/json" if wrap else "application/problem+json"
            hold.set()
            await slow_one


async def test_a_thread_that_outlives_its_deadline_is_reported_with_its_stack(release, caplog):
    app = FastAPI()
    kit = kitted(app, deadline=0.1)

    def where_it_stands():
        release.wait(20)

    @app.get("/slow")
    def slow():
        where_it_stands()

    async with served(app, lifespan="on") as (session, _):
        assert (await fetch(session, "/slow", headers={"X-Request-ID": "the-slow"}))[0] == 504
        await eventually(lambda: [record for record in caplog.records if record.name == "freeloop.threads"])
        (record,) = [record for record in caplog.records if record.name == "freeloop.threads"]
        assert (record.levelno, record.message) == (logging.WARNING, "a thread outlives its caller")
        assert (record.pool, record.cause, record.request_id) == ("routes", "deadline", "the-slow")
        assert "in where_it_stands" in record.stack
        assert "in slow" in record.stack
        assert record.function.endswith("slow")
        release.set()
        await settle(pools_of(kit).routes)


async def test_abandoned_calls_never_run_on_more_threads_than_allowed(release):
    app = FastAPI()
    kit = kitted(app, deadline=0.1, route_threads=5, max_concurrency=1_000)
    lock, running, most = threading.Lock(), 0, 0

    @app.get("/")
    def slow():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        release.wait(0.3)
        with lock:
            running -= 1

    async with served(app, lifespan="on") as (session, _):
        answers = await soon(asyncio.gather(*(fetch(session, "/") for _ in range(200))), 60)
        assert {status for status, _ in answers} <= {503, 504}
        release.set()
        await settle(pools_of(kit).routes)
        kit.settings.model_dump()
    assert most == 5


def build_plain():
    """An app whose sync code does everything that a thread pool could get wrong."""
    app = FastAPI()
    variable = contextvars.ContextVar("variable", default="unset")

    async def setter():
        variable.set("from a dependency")

    def with_yield():
        variable.set("from a thread")  # a thread has a copy of its own, which ends with it
        try:
            yield "value"
        except ValueError as error:
            raise HTTPException(409, f"seen: {error}") from error

    @app.get("/value")
    def value(given: Annotated[str, Depends(with_yield)], _: Annotated[None, Depends(setter)]):
        return [given, variable.get(), threading.current_thread() is threading.main_thread()]

    @app.get("/error")
    def error(given: Annotated[str, Depends(with_yield)]):
        raise ValueError("wrong")

    @app.get("/http-error")
    def http_error():
        raise HTTPException(418, "teapot", headers={"X-Tea": "green"})

    @app.get("/stop")
    def stop():
        raise KeyError("x")

    @app.exception_handler(KeyError)
    def handle(request, error):
        return PlainTextResponse(f"handled {error}", 500)

    @app.get("/stream")
    def stream():
        def body():
            for number in range(5):
                yield f"{number} {variable.get()}\n"

        return StreamingResponse(body())

    @app.get("/empty")
    def empty():
        return StreamingResponse(iter(()))

    @app.get("/file")
    def file():
        return FileResponse(__file__)

    @app.get("/background")
    def background(tasks: BackgroundTasks):
        tasks.add_task(int)
        return "done"

    @app.post("/upload")
    def upload(file: UploadFile):
        return len(file.file.read())

    return app


async def test_sync_code_behaves_as_it_does_without_us():
    async def collect(app):
        found = []
        async with served(app, lifespan="on") as (session, _):
            for path in (
                "/value",
                "/error",
                "/http-error",
                "/stop",
                "/stream",
                "/empty",
                "/file",
                "/background",
            ):
                async with session.get(path) as answer:
                    headers = {
                        name: value
                        for name, value in answer.headers.items()
                        if name not in {"Date", "X-Request-ID"}
                    }
                    found.append((path, answer.status, headers, await answer.read()))
            async with session.post("/upload", data={"file": io.BytesIO(b"x" * 3_000_000)}) as answer:
                found.append((answer.status, await answer.read()))
        return found

    plain = await collect(build_plain())
    app = build_plain()
    kitted(app)
    ours = await collect(app)
    assert ours == plain
    assert plain[0][3] == b'["value","from a dependency",false]'


async def test_a_sync_stream_that_is_cut_gives_its_thread_back(release):
    app, closed = FastAPI(), threading.Event()
    kit = kitted(app)

    @app.get("/")
    @deadline(0.2)
    def stream():
        def body():
            try:
                yield b"part"
                release.wait(20)
                yield b"part"
            finally:
                closed.set()

        return StreamingResponse(body())

    async with served(app, lifespan="on") as (session, _):
        async with session.get("/") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert pools_of(kit).routes.in_use == 1
        release.set()
        await settle(pools_of(kit).routes)
        gc.collect()  # the cancellation's traceback, in a ring with a frame of anyio's, holds the generator
        assert await asyncio.to_thread(closed.wait, 5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["closed in order", "closed in reverse"])
async def test_two_apps_have_their_pools_and_leave_the_framework_as_it_was(order, release):
    before = starlette.concurrency.anyio
    kits, sessions, stacks = [], [], []
    for _ in range(2):
        app = FastAPI()
        kits.append(kitted(app))

        @app.get("/")
        def slow():
            release.wait(20)

        stacks.append(contextlib.AsyncExitStack())
        session, _ = await stacks[-1].enter_async_context(served(app, lifespan="on"))
        sessions.append(session)

    def busy():
        return [pools_of(kit).routes.in_use for kit in kits]

    first, second = order
    slows = [asyncio.create_task(fetch(sessions[first], "/"))]
    await eventually(lambda: busy()[first] == 1)
    assert busy()[second] == 0
    release.set()
    await soon(asyncio.gather(*slows))
    release.clear()
    await stacks[first].aclose()

    slows = [asyncio.create_task(fetch(sessions[second], "/")) for _ in range(3)]
    await eventually(lambda: pools_of(kits[second]).routes.in_use == 3)
    assert starlette.concurrency.anyio is not before
    release.set()
    await soon(asyncio.gather(*slows))
    await stacks[second].aclose()
    assert starlette.concurrency.anyio is before


async def test_spawned_work_and_websockets_use_the_pools_of_their_app_too():
    apps = [FastAPI() for _ in range(2)]
    kits = [kitted(app) for app in apps]
    seen = asyncio.Queue()

    def busy():
        return [pools_of(kit).routes.in_use for kit in kits]

    async def work():
        seen.put_nowait(await run_in_threadpool(busy))

    for app in apps:

        @app.get("/")
        async def spawn(request: Request):
            request.app.state.freeloop.spawn(work)

        @app.websocket("/ws")
        async def ws(websocket: WebSocket):
            await websocket.accept()
            await work()

    async with (
        served(apps[0], lifespan="on", ws="websockets-sansio") as (one, _),
        served(apps[1], lifespan="on", ws="websockets-sansio") as (two, _),
    ):
        for session, expected in ((one, [1, 0]), (two, [0, 1])):
            await fetch(session, "/")
            assert await soon(seen.get()) == expected
            async with session.ws_connect("/ws"):
                assert await soon(seen.get()) == expected


async def test_a_scope_that_is_nobodys_uses_the_pool_of_the_app_that_is_open():
    app = FastAPI()
    kit = kitted(app)

    async def run():
        Scope("left over").enter()
        return await run_in_threadpool(lambda: pools_of(kit).routes.in_use)

    async with served(app, lifespan="on"):
        assert await asyncio.create_task(run()) == 1
        assert await run_in_threadpool(lambda: pools_of(kit).routes.in_use) == 0  # in no scope at all


async def test_a_starlette_that_goes_another_way_is_told_and_works_as_without_us(caplog, monkeypatch):
    app = FastAPI()
    kit = kitted(app)

    @app.get("/")
    def answer():
        return pools_of(kit).routes.in_use

    async def run_elsewhere(function, /, *args, **kwargs):
        return await asyncio.to_thread(function, *args, **kwargs)

    for module in (starlette.concurrency, fastapi.routing):
        monkeypatch.setattr(module, "run_in_threadpool", run_elsewhere)
    async with served(app, lifespan="on") as (session, _):
        assert "FREELOOP_ROUTE_THREADS has no effect" in warning_in(caplog)
        assert await fetch(session, "/") == (200, b"0")


@pytest.mark.parametrize("name", ["anyio", "run_in_threadpool"])
async def test_a_starlette_without_the_names_that_are_replaced_is_told(caplog, monkeypatch, name):
    monkeypatch.delattr(starlette.concurrency, name)
    with adopt_sync_routes(open_threads(routes=1, calls=1), lambda _: True):
        assert "FREELOOP_ROUTE_THREADS has no effect" in warning_in(caplog)
    assert not hasattr(starlette.concurrency, name)


def warning_in(caplog):
    (record,) = [record for record in caplog.records if record.name == "freeloop.threads"]
    assert record.levelno == logging.WARNING
    return record.message
