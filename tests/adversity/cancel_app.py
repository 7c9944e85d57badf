"""An app that borrows everything that can be borrowed, and says what is still out."""

import asyncio
import json
import os
import threading
import time
from contextlib import asynccontextmanager

from fastapi import FastAPI

from freeloop import Freeloop, current_scope
from freeloop.database import Address, Database
from freeloop.outbound import AiohttpTransport, Client

ADDRESS = json.loads(os.environ["TEST_ADDRESS"])


class Upstream:
    """An external API that answers slowly, and counts its connections."""

    def __init__(self):
        self.open = 0

    async def serve(self, reader, writer):
        self.open += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.03)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


class State:
    """What the lifespan opens."""

    def __init__(self):
        self.upstream = Upstream()
        self.scopes = set()
        self.database = None
        self.outbound = None
        self.url = ""


state = State()


@asynccontextmanager
async def lifespan(_):
    server = await asyncio.start_server(state.upstream.serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    state.database = Database(Address(**ADDRESS), size=10, acquire_timeout=20)
    await state.database.open()
    state.outbound = Client(AiohttpTransport())
    yield
    await state.outbound.close()
    await state.database.close()
    server.close()


app = FastAPI(lifespan=lifespan)
kit = Freeloop(app)


@app.get("/transaction")
async def transaction():
    state.scopes.add(current_scope())
    async with state.database.transaction() as tx:
        await tx.execute("INSERT INTO witness VALUES ('x')")
        await tx.fetch("SELECT pg_sleep(0.02)")
        async with tx.transaction():
            await tx.execute("UPDATE witness SET what = 'y' WHERE false")
        await asyncio.sleep(0.01)


@app.get("/statement")
async def statement():
    state.scopes.add(current_scope())
    await state.database.fetch("SELECT pg_sleep(0.03)")


@app.get("/outbound")
async def outbound():
    state.scopes.add(current_scope())
    return (await state.outbound.get(state.url)).status_code


@app.get("/thread")
def thread():
    time.sleep(0.03)


@app.get("/run-sync")
async def run_sync():
    state.scopes.add(current_scope())
    await kit.run_sync(time.sleep, 0.03)


@app.get("/children")
async def children():
    scope = current_scope()
    state.scopes.add(scope)
    tasks = [scope.start_soon(work) for work in (statement, outbound, transaction, run_sync)]
    await asyncio.gather(*tasks)


@app.get("/left")
async def left():
    """Say what is out, this request itself aside."""
    state.scopes = {scope for scope in state.scopes if scope.leases or scope.children}
    threads = kit._resources.threads.get()
    return {
        "leases": [str(lease) for scope in state.scopes for lease in scope.leases],
        "children": sum(len(scope.children) for scope in state.scopes),
        "requests": kit.gate.running - 1,
        "connections": state.database.in_use,
        "waiting": state.database.waiting,
        "threads": sum(pool.in_use + pool.waiting for pool in threads),
        "upstream": state.upstream.open,
        "tasks": sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks()),
        "alive": threading.active_count(),
    }
