"""The app that is drained: everything that may be open at a shutdown, each telling what becomes of it."""

import asyncio
import json
import os
import sys
import time
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import EventSourceResponse

from freeloop import Freeloop, priority
from freeloop.database import Address, Database

ADDRESS = json.loads(os.environ.get("TEST_ADDRESS", "null"))


def tell(name, **details):
    sys.stderr.write(json.dumps({"app": name, **details}) + "\n")
    sys.stderr.flush()


def sleep():
    time.sleep(60)


class Pool:
    """Stands for what the lifespan opens and handlers use to the end."""

    closed = False


def build():  # noqa: PLR0915 - a list of routes
    @asynccontextmanager
    async def lifespan(app):
        app.state.pool = Pool()
        app.state.release = asyncio.Event()
        app.state.database = None
        if ADDRESS:
            app.state.database = Database(Address(**ADDRESS))
            await app.state.database.open()
        tell("opened")
        yield
        if ADDRESS:
            await app.state.database.close()
        app.state.pool.closed = True
        tell("closed")

    app = FastAPI(lifespan=lifespan)

    @asynccontextmanager
    async def visible(name):
        """Tell when it runs, and when its clean-up, which awaits, is through, with the pool open or not."""
        tell(name)
        try:
            yield
        finally:
            # Streams run in a task group of anyio, which cancels each await of a clean-up anew.
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.05)
            tell(name + " cleaned", pool_closed=app.state.pool.closed)

    @app.get("/quick")
    async def quick():
        return "served"

    @app.post("/pid")
    @priority("critical")  # never shed: the machine may be slow, and overload is not what is tested here
    async def pid():
        await asyncio.sleep(0.02)
        return os.getpid()

    @app.get("/release")
    async def release():
        app.state.release.set()

    @app.get("/events", response_class=EventSourceResponse)
    async def events():
        async with visible("events"):
            number = 0
            while True:
                number += 1
                yield number
                await asyncio.sleep(0.05)

    @app.get("/stream")
    async def stream():
        async def body():
            async with visible("stream"):
                while True:
                    yield b"data: x\n\n"
                    await asyncio.sleep(0.05)

        return StreamingResponse(body(), media_type="text/event-stream")

    @app.get("/late")
    async def late():
        """Released in the drain delay, it begins its stream when the others have ended."""
        tell("late")
        await app.state.release.wait()
        await asyncio.sleep(0.7)
        return await stream()

    @app.get("/flood")
    async def flood():
        async def body():
            async with visible("flood"):
                while True:
                    yield b"data: " + b"x" * 100_000 + b"\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    @app.get("/flood/events", response_class=EventSourceResponse)
    async def flood_of_events():
        async with visible("flood"):
            while True:
                yield "x" * 100_000

    @app.websocket("/ws")
    async def ws(socket: WebSocket):
        await socket.accept()
        async with visible("ws"):
            try:
                while True:
                    await socket.send_text(await socket.receive_text())
            except WebSocketDisconnect as end:
                tell("ws told", code=end.code)

    @app.websocket("/deaf")
    async def deaf(socket: WebSocket):
        await socket.accept()
        async with visible("deaf"):
            await asyncio.Event().wait()

    @app.get("/slow")
    async def slow():
        """Released in the drain delay, it goes on beyond the end of it."""
        async with visible("slow"):
            await app.state.release.wait()
            await asyncio.sleep(0.7)
        return "finished"

    @app.get("/endless")
    async def endless():
        async with visible("endless"):
            await asyncio.Event().wait()

    @app.get("/thread")
    def thread(seconds: float = 60):
        tell("thread")
        time.sleep(seconds)

    @app.post("/body")
    async def body(request: Request):
        async with visible("body"):
            return len(await request.body())

    @app.get("/block")
    async def block(seconds: float):
        tell("block")
        time.sleep(seconds)  # noqa: ASYNC251 - what is tested

    @app.get("/large")
    async def large():
        return Response(b"x" * 20_000_000)

    @app.get("/transaction")
    async def transaction():
        async with visible("transaction"), app.state.database.transaction() as tx:
            await tx.execute("INSERT INTO witness VALUES ('transaction')")
            tell("inserted")
            await asyncio.Event().wait()

    @app.get("/query")
    async def query(seconds: float):
        async with visible("query"):
            await app.state.database.fetch("SELECT pg_sleep($1)", seconds)

    @app.get("/to-thread")
    async def to_thread():
        tell("to-thread")
        await asyncio.to_thread(sleep)

    return app


app = build()

kit_app = build()
kit = Freeloop(kit_app)


@kit_app.get("/spawn")
async def spawn(seconds: float):
    async def work():
        try:
            tell("spawned", seconds=seconds)
            await kit_app.state.release.wait()
            await asyncio.sleep(seconds)
            tell("spawn finished", pool_closed=kit_app.state.pool.closed)
        finally:
            await asyncio.sleep(0.05)
            tell("spawn ended", seconds=seconds, pool_closed=kit_app.state.pool.closed)

    kit.spawn(work)
