"""The composition root: what an app gets from Freeloop, opened in order and closed in reverse.

May be imported by ``service``, ``server`` and ``cli``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from starlette.applications import Starlette
from starlette.types import ASGIApp

from freeloop.background import Background
from freeloop.database import Address, Database, ServerPort
from freeloop.database.migrations import migrate
from freeloop.errors import FreeloopError
from freeloop.gate.bulkheads import find_routes
from freeloop.gate.install import install_gate
from freeloop.gate.middleware import Gate, Observer
from freeloop.gate.pages import Page, list_pages
from freeloop.gate.policy import Policy
from freeloop.gate.problems import answer_own
from freeloop.logs import log_request
from freeloop.metrics import Metrics
from freeloop.outbound import AiohttpTransport, Client
from freeloop.readings import list_gate_readings, list_work_readings
from freeloop.settings import Settings, read_settings
from freeloop.threads import Threads, adopt_sync_routes, open_threads

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("freeloop.kit")


class Freeloop:
    """Gives an app scopes, overload protection, threads, background work and an orderly shutdown.

    ::

        app = FastAPI()
        kit = Freeloop(app)

    Args:
        app: A FastAPI or Starlette app that has not started yet; None: :meth:`install` or :meth:`wrap` later.
        settings: All settings; read from the environment where left out.
        max_body: The largest request body in bytes (413); None leaves that to the app.
        local: Whether only this machine reaches the app; where it does not, ``/metrics`` needs a token.

    Attributes:
        gate: The outermost layer of the app.
        metrics: What ``/metrics`` shows.

    Raises:
        SettingsError: A setting has a wrong value.
    """

    def __init__(
        self,
        app: Starlette | None = None,
        *,
        settings: Settings | None = None,
        max_body: int | None = None,
        local: bool = False,
    ) -> None:
        self.settings = settings or read_settings()
        self.metrics = Metrics()
        self.gate: Gate | None = None
        self._max_body = max_body
        self._local = local
        self._background = Background()
        self._threads: Threads | None = None
        if app is not None:
            self.install(app)

    def install(self, app: Starlette) -> None:
        """Put the gate around ``app``, and what it needs around its lifespan.

        Raises:
            RuntimeError: The app has started, or has a kit already.
        """
        if app.middleware_stack is not None:
            raise RuntimeError(
                "the kit came too late: call Freeloop(app) where the app is made, before it starts"
            )
        if getattr(app.state, "freeloop", None) is not None:
            raise RuntimeError(
                "this app has a kit already: use app.state.freeloop, or remove one Freeloop(app)"
            )
        gate = self.wrap(app)
        install_gate(app, gate)
        app.add_exception_handler(FreeloopError, answer_own)
        app.state.freeloop = self
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(started: Any) -> AsyncIterator[Mapping[str, Any] | None]:  # noqa: ANN401 - the app
            async with self.open(), inner(started) as state:
                try:
                    yield state
                finally:
                    # Before the app closes what its background executions still use.
                    await self.finish_background()

        app.router.lifespan_context = cast("Any", lifespan)  # Starlette's type allows one kind of state

    def wrap(self, app: ASGIApp) -> Gate:
        """Return a gate around any ASGI app, which stays as it is."""
        if self.gate is not None:
            raise RuntimeError("a kit serves one app: make one Freeloop for each")
        settings = self.settings
        observers: list[Observer] = [self.metrics.observe]
        if settings.access_log:
            observers.append(log_request)
        self.gate = Gate(
            app,
            observers=observers,
            policy=Policy(
                deadline=settings.deadline,
                deadline_header=settings.deadline_header,
                cleanup_timeout=settings.cleanup_timeout,
                max_body=self._max_body,
                max_concurrency=settings.max_concurrency,
                server_timing=settings.server_timing,
                readiness_path=settings.readiness_path,
            ),
            pages=self._list_pages(app),
        )
        self.metrics.watch(list_gate_readings(self.gate))
        self.metrics.watch(list_work_readings(lambda: self._threads, self._background))
        return self.gate

    def _list_pages(self, app: ASGIApp) -> dict[str, Page]:
        if not find_routes(app):
            return {}  # whether it has such pages itself cannot be told
        token = self.settings.token.get_secret_value() if self.settings.token else None
        return list_pages(self.settings.readiness_path, self.metrics, token, local=self._local)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Open the threads for sync code while the app runs."""
        self._threads = open_threads(routes=self.settings.route_threads, calls=self.settings.threads)
        with adopt_sync_routes(self._threads):
            yield

    async def run_sync(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a sync function in a thread; at most ``FREELOOP_THREADS`` run at once.

        Raises:
            ThreadsBusy: No thread came free in time (503).
        """
        return await self._running_threads().calls.run(function, *args, **kwargs)

    def spawn(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        """Start an async function that may outlive the request; see :meth:`Background.start`."""
        return self._background.start(function, *args, **kwargs)

    def drain(self) -> None:
        """Begin the shutdown: readiness turns."""
        if self.gate is not None:
            self.gate.drain()

    def close_streams(self) -> None:
        """End streams of events and WebSockets."""
        if self.gate is not None:
            self.gate.close_streams()

    def cancel(self) -> None:
        """Cancel requests and background executions."""
        if self.gate is not None:
            self.gate.cancel()
        self._background.cancel()

    async def wait_idle(self) -> None:
        """Wait until no request and no background execution runs."""
        if self.gate is not None:
            await self.gate.wait_idle()
        await self._background.wait()

    async def finish_background(self) -> None:
        """Let background executions end, then cancel those that do not, each in bounded time.

        Where the server has cancelled them already, it has waited for them too; only what was started since
        is still there.
        """
        if self._background.cut or not await self._background.wait(self.settings.shutdown_timeout / 2):
            self._background.cancel()
            await self._background.wait(self.settings.cleanup_timeout)

    def _running_threads(self) -> Threads:
        if self._threads is None:
            raise RuntimeError(
                "the kit is not open: run the app with its lifespan, or use 'async with kit.open()'"
            )
        return self._threads


@dataclass(frozen=True, slots=True)
class Resources:
    """What is open while the app runs."""

    database: Database
    outbound: Client


@asynccontextmanager
async def open_address(settings: Settings) -> AsyncIterator[tuple[Address, ServerPort | None]]:
    """Give PostgreSQL's address; without ``FREELOOP_DATABASE_URL``, the embedded one's, started first."""
    if settings.database_url is not None:
        yield Address(dsn=settings.database_url.get_secret_value()), None
        return
    # Imported here: with a URL, nothing of the embedded server is loaded.
    from freeloop.database.embedded import EmbeddedServer  # noqa: PLC0415

    server = EmbeddedServer(settings.data_dir, start_timeout=settings.start_timeout)
    address = await server.start()
    try:
        yield address, server
    finally:
        await server.close()


@asynccontextmanager
async def open_resources(settings: Settings, migrations: Path) -> AsyncIterator[Resources]:
    """Open the database (migrated) and the outbound client; close them in reverse, also half-way.

    Args:
        settings: All settings.
        migrations: The folder of the app's migrations.

    Raises:
        StartError: Something could not be opened within ``FREELOOP_START_TIMEOUT``.
        DatabaseUnavailable: The database was not there in that time.
    """
    until = time.monotonic() + settings.start_timeout
    async with AsyncExitStack() as stack:
        address, server = await stack.enter_async_context(open_address(settings))
        database = Database(
            address,
            size=settings.database_pool_size,
            acquire_timeout=settings.database_acquire_timeout,
            statement_timeout=settings.database_statement_timeout,
            server=server,
        )
        stack.push_async_callback(database.close)
        await database.open(timeout=max(0.1, until - time.monotonic()))
        applied = await migrate(address, migrations, timeout=max(1.0, until - time.monotonic()))
        if applied:
            logger.info("migrations applied", extra={"migrations": list(applied)})
        outbound = Client(
            AiohttpTransport(), timeout=settings.fetch_timeout, max_body=settings.fetch_max_body
        )
        stack.push_async_callback(outbound.close)
        yield Resources(database, outbound)
