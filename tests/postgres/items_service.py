"""The items router alone, on a real server and a real database; and what its tests do over and over."""

import asyncio
import socket
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import asyncpg
import uvicorn
from fastapi import FastAPI

from freeloop import Freeloop
from freeloop.gate.problems import install_problem_handlers
from freeloop.service.items.changelog import ORIGIN, Cursor, read_log
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.items.routes import router
from freeloop.settings import Settings

TOKEN = "a-token-for-tests"  # noqa: S105  # nobody else's secret
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}

NEVER = 600.0  # seconds: longer than any test runs, so what arrives was announced
SOON = 15.0  # seconds: far more than anything here takes

INSERT = "insert into items (name, price) values ($1, 1) returning id"


class GivenDatabase(Freeloop):
    """A kit whose database is open already, and stays open behind it."""

    def __init__(self, app, database):
        self._given = database
        super().__init__(app, settings=Settings(_env_file=None, deadline=None, token=TOKEN))

    @property
    def database(self):
        return self._given


@asynccontextmanager
async def serve_items(database, **feed):
    """Yield an authorized client session; closing the feed ends the streams, so the server can stop."""
    async with ChangeFeed(database, **feed) as changes:

        @asynccontextmanager
        async def lifespan(_):
            yield {"service": SimpleNamespace(changes=changes)}

        app = FastAPI(lifespan=lifespan)
        GivenDatabase(app, database)
        app.include_router(router)
        install_problem_handlers(app)
        config = uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            timeout = aiohttp.ClientTimeout(total=30)
            try:
                async with aiohttp.ClientSession(url, headers=AUTHORIZED, timeout=timeout) as client:
                    yield client, changes
            finally:
                await changes.close()
                server.should_exit = True
                async with asyncio.timeout(15):
                    await serving


@asynccontextmanager
async def connect(address):
    connection = await asyncpg.connect(**address.arguments())
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def take(stream, number):
    """Return the next changes of a stream."""
    async with asyncio.timeout(SOON):
        return [await anext(stream) for _ in range(number)]


async def until(condition):
    """Wait for what gives no signal."""
    async with asyncio.timeout(SOON):
        while not await condition():
            await asyncio.sleep(0.01)


async def insert(queries, *names):
    return [await queries.fetch_value(INSERT, name) for name in names]


async def log(queries):
    """The whole log in the order in which it must arrive."""
    rows = await queries.fetch("select stamp, id from item_changes order by stamp, id")
    return [Cursor(*row) for row in rows]


async def settled_log(database):
    """The same once all of it may be read: any transaction of the server, as autovacuum's, delays that."""

    async def settled():
        return not (await read_log(database, ORIGIN, limit=0)).pending

    await until(settled)
    return await log(database)
