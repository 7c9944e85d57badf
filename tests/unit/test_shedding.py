"""Who is shed at a full route, and who holds no place there: over HTTP, with one place."""

import asyncio
import contextlib

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from freeloop import priority
from serving import connected, gated, request_of, served, soon


@pytest.fixture
def app():
    app = FastAPI()
    app.begun, app.go_on = asyncio.Event(), asyncio.Event()

    @app.get("/slow")
    async def slow(wait: bool = True):
        app.begun.set()
        if wait:
            await app.go_on.wait()

    @app.get("/stream")
    async def stream():
        async def body():
            yield b"part"
            await app.go_on.wait()

        return StreamingResponse(body())

    @app.get("/important")
    @priority("critical")
    async def important():
        app.begun.set()
        await app.go_on.wait()

    @app.get("/other")
    async def other(): ...

    @app.get("/healthz")
    async def probe(): ...

    return app


@contextlib.asynccontextmanager
async def held(app, session, path):
    """Let one request of ``path`` run meanwhile."""
    running = asyncio.create_task(session.get(path))
    await soon(app.begun.wait())
    yield
    app.go_on.set()
    assert (await soon(running)).status == 200


async def status_of(session, path):
    async with session.get(path) as answer:
        return answer.status


async def test_a_shed_request_is_told_when_to_come_again_and_no_other_route_is_touched(app):
    gated(app, max_concurrency=1)
    async with served(app) as (session, _), held(app, session, "/slow"):
        async with session.get("/slow") as answer:
            problem = await answer.json()
            assert (answer.status, problem["status"]) == (503, 503)
            assert answer.content_type == "application/problem+json"
            assert problem["title"] == "/slow is overloaded"
            assert problem["request_id"] == answer.headers["X-Request-ID"]
            assert 1 <= int(answer.headers["Retry-After"]) <= 30
        assert [await status_of(session, path) for path in ("/other", "/healthz")] == [200, 200]


async def test_a_critical_route_is_never_shed(app):
    gated(app, max_concurrency=1)
    async with served(app) as (session, _), held(app, session, "/important"):
        app.begun.clear()
        second = asyncio.create_task(status_of(session, "/important"))
        await soon(app.begun.wait())
        app.go_on.set()
        assert await soon(second) == 200


async def test_idle_connections_and_streams_hold_no_place(app):
    gate = gated(app, max_concurrency=1)
    async with served(app) as (session, server), contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            reader, _ = await stack.enter_async_context(connected(server, request_of("/slow?wait=0")))
            assert b" 200 " in await soon(reader.readline())
        for number in range(3):
            stream = await stack.enter_async_context(session.get("/stream"))
            assert (stream.status, gate.streams) == (200, number + 1)
        assert await status_of(session, "/slow?wait=0") == 200
        app.go_on.set()
