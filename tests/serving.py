"""An app on a real socket in the test's own loop, and what the tests of the gate measure with."""

import asyncio
import contextlib
import time

import aiohttp
import uvicorn

from freeloop import Freeloop
from freeloop.errors import FreeloopError
from freeloop.gate.install import install_gate
from freeloop.gate.middleware import Gate
from freeloop.gate.policy import Policy
from freeloop.gate.problems import answer_own
from freeloop.settings import Settings

EARLY = 0.002  # s; uvloop counts whole milliseconds, so that a sleep may end before its time


@contextlib.asynccontextmanager
async def served(app, **options):
    """Run ``app`` under uvicorn; give a client session and the server."""
    options = {"lifespan": "off", "ws": "none", **options}
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **options))
    server.capture_signals = contextlib.nullcontext
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.001)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port_of(server)}") as session:
            yield session, server
    except BaseException:
        server.force_exit = True  # what runs may never end, and would hide why the test failed
        raise
    finally:
        server.should_exit = True
        async with asyncio.timeout(10):
            await running


def port_of(server):
    return server.servers[0].sockets[0].getsockname()[1]


def gated(app, *, records=None, **policy):
    """Put a gate around ``app``; return the gate."""
    observers = [] if records is None else [records.append]
    app.add_exception_handler(FreeloopError, answer_own)
    gate = Gate(app, observers=observers, policy=Policy(**policy))
    install_gate(app, gate)
    return gate


def kitted(app, **settings):
    """Install a kit in ``app``; its threads come with ``served(app, lifespan="on")``."""
    return Freeloop(app, settings=Settings(_env_file=None, **settings))


class Metronome:
    """How late the loop itself was, which a busy machine adds to every time that a test measures."""

    def __init__(self):
        self.late = 0.0

    async def __aenter__(self):
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()

    async def _beat(self):
        while True:
            due = time.monotonic() + 0.002
            await asyncio.sleep(0.002)
            self.late = max(self.late, time.monotonic() - due)


class Ending:
    """How a block that is to be cancelled came to its end, and when.

    ``async with ending:`` in the app; the test waits for ``begun`` and ``over``.
    """

    def __init__(self):
        self.begun = asyncio.Event()
        self.over = asyncio.Event()
        self.error = None
        self.at = None

    async def __aenter__(self):
        self.begun.set()

    async def __aexit__(self, kind, error, trace):
        self.at = time.monotonic()
        self.error = kind
        self.over.set()


async def soon(awaitable, seconds=5):
    """Await it, with a bound."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def forever():
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def connected(server, request):
    """A raw connection that has sent ``request``; closed behind the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(request)
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request_of(path, *, method="GET", version="1.1", headers=(), body=b""):
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
