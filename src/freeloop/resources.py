"""What the kit opens for an app while it runs, each thing in its order, and closes in reverse.

A further resource is one more entry in :class:`Resources`. Only the kit and the command line import it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from freeloop.database import Address, Budget, Database, ServerPort, check_budget
from freeloop.database.budget import count_workers
from freeloop.database.migrations import migrate
from freeloop.errors import SettingsError
from freeloop.inspection import Question, open_socket
from freeloop.outbound import AiohttpTransport, Client, Redirects, Source, Stacks, UrlGuard
from freeloop.scope import Scope
from freeloop.settings import Settings
from freeloop.tasks import Tasks
from freeloop.tasks.retention import TaskRetention
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.threads import Threads, adopt_sync_routes, open_threads
from freeloop.tree import Tree

T = TypeVar("T")
logger = logging.getLogger("freeloop.resources")

_HOSTS: Final = 10  # as many as may each have all their connections open at once


class Resource(Generic[T]):
    """Something that is there while the app runs.

    Args:
        name: What messages call it.
        opener: Makes the context manager that opens and closes it; None: the app has not asked for it.
        request: How an app asks for it, for the message.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], AbstractAsyncContextManager[T]] | None,
        *,
        request: str = "Freeloop(app)",
    ) -> None:
        self._name = name
        self._opener = opener
        self._request = request
        self.current: T | None = None
        """What is open now; None: nothing."""

    def get(self) -> T:
        """Return what is open.

        Raises:
            RuntimeError: Nothing is; the message says what to do.
        """
        if self.current is not None:
            return self.current
        if self._opener is None:
            raise RuntimeError(f"this kit has no {self._name}: write {self._request}")
        raise RuntimeError(
            f"the {self._name} of the kit is not open: run the app with its lifespan, or use "
            "'async with kit.open()'"
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Open it for the block, where the app has asked for it."""
        if self._opener is None:
            yield
            return
        async with self._opener() as opened:
            self.current = opened
            try:
                yield
            finally:
                self.current = None


class Resources:
    """What one app has.

    Args:
        settings: All settings.
        name: The app's name; empty: it has none.
        runs: Whether a scope is one of the app's.
        database: Whether it has a database.
        migrations: The folder of its migrations; None: it has none.
        tasks: Its durable tasks, opened where any were declared.
        sources: What the app says of external APIs, by name.
        source_defaults: What holds for those of which it says nothing.
        spawn: Starts an async function that outlives a request.
        questions: What else is answered by the socket, beside the tree.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: Callable[[], str],
        runs: Callable[[Scope], bool],
        database: bool,
        migrations: Path | None,
        tasks: Tasks,
        sources: Mapping[str, Source],
        source_defaults: Source,
        spawn: Callable[..., Any],
        questions: Mapping[str, Question],
    ) -> None:
        self._open = False
        described = describe_sources(settings, sources, source_defaults)
        self.inspection = Resource("inspection", lambda: _open_inspection(settings, name(), questions))
        self.threads = Resource("threads", lambda: _open_threads(settings, runs))
        self.outbound = Resource(
            "outbound client",
            lambda: open_calls(settings, described, default=source_defaults, spawn=spawn),
        )
        self.database = Resource(
            "database",
            (lambda: open_database(settings, migrations, tasks=bool(tasks.declared))) if database else None,
            request="Freeloop(app, database=True)",
        )
        self.tasks = Resource("tasks", lambda: _open_tasks(tasks, self.database.current, settings))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Open all for the block; where one of them fails, those before it are closed.

        Within such a block there is nothing left to open: `freeloop run` opens them before the app's lifespan
        does, so that what fails is one line and not a traceback of the lifespan.
        """
        if self._open:
            yield
            return
        async with AsyncExitStack() as stack:
            # What may fail comes last: then there is least to take back.
            for resource in (self.inspection, self.threads, self.outbound, self.database, self.tasks):
                await stack.enter_async_context(resource.open())
            self._open = True
            stack.callback(setattr, self, "_open", False)
            yield


@dataclass(frozen=True, slots=True)
class Calls:
    """What calls external APIs; one pool of connections, and one set of layers.

    Attributes:
        client: For URLs of the app.
        guarded: For URLs that users supply.
        stacks: The layers of each source.
    """

    client: Client
    guarded: Client
    stacks: Stacks


def describe_sources(settings: Settings, sources: Mapping[str, Source], default: Source) -> dict[str, Source]:
    """Return how each source is called: as the app says, and the settings where they say something.

    Args:
        settings: All settings.
        sources: What the app says, by name.
        default: What holds for those of which it says nothing.
    """
    said = {name: replace(sources.get(name, default), **each) for name, each in settings.sources.items()}
    return {**sources, **said}


@asynccontextmanager
async def open_calls(
    settings: Settings, sources: Mapping[str, Source], *, default: Source, spawn: Callable[..., Any]
) -> AsyncIterator[Calls]:
    """Open what calls external APIs for the block.

    Args:
        settings: All settings.
        sources: How sources are called, by name.
        default: How all others are.
        spawn: Starts an async function that outlives a call.
    """
    # Where the layers let more through, the pool must not be what holds them up.
    most = max(each.concurrency or 0 for each in (Source(), default, *sources.values()))
    transport = AiohttpTransport(limit=_HOSTS * most, limit_per_host=most)
    stacks = Stacks(transport, sources, default=default, spawn=spawn)
    guard = UrlGuard(stacks, exempt={name: each.url for name, each in sources.items() if each.url})
    connect = partial(
        Client,
        timeout=settings.fetch_timeout,
        max_body=settings.fetch_max_body,
        sources=sources,
        default=default,
    )
    async with connect(Redirects(stacks, elsewhere=guard)) as client:
        yield Calls(client, connect(Redirects(guard)), stacks)


@asynccontextmanager
async def open_address(settings: Settings) -> AsyncIterator[tuple[Address, ServerPort | None]]:
    """Give PostgreSQL's address; without ``FREELOOP_DATABASE_URL``, the embedded one's, started first."""
    if settings.database_url is not None:
        direct = None
        if settings.database_direct_url is not None:
            direct = Address(
                dsn=settings.database_direct_url.get_secret_value(), setting="FREELOOP_DATABASE_DIRECT_URL"
            )
        dsn = settings.database_url.get_secret_value()
        yield Address(dsn=dsn, pooler=settings.database_pooler, direct=direct), None
        return
    # Imported here: with a URL, nothing of the embedded server is loaded.
    from freeloop.database.embedded import EmbeddedServer  # noqa: PLC0415

    server = EmbeddedServer(settings.data_dir, start_timeout=settings.start_timeout)
    address = await server.start()
    try:
        yield address, server
    finally:
        await server.close()


def plan_budget(settings: Settings, *, tasks: bool) -> Budget:
    """Return how many connections an app may take.

    Args:
        settings: All settings.
        tasks: As of :func:`open_database`.
    """
    # One asks where the log of the primary ends.
    lookout = settings.database_read_url is not None
    return Budget(
        settings.database_pool_size,
        listeners=(2 if lookout else 1) + (2 if tasks else 0),
        workers=count_workers(os.environ),
        replicas=settings.replicas,
        reserve=settings.database_reserve,
    )


def find_replicas(settings: Settings) -> list[Address]:
    """Return where the read replicas listen.

    Raises:
        SettingsError: There are some of the embedded PostgreSQL, which has none.
    """
    if settings.database_read_url is None:
        return []
    if settings.database_url is None:
        raise SettingsError(
            [
                (
                    "FREELOOP_DATABASE_READ_URL: expected replicas of a PostgreSQL at FREELOOP_DATABASE_URL, "
                    "which is not set; the embedded one has none"
                )
            ]
        )
    dsn = settings.database_read_url.get_secret_value()
    return [Address(dsn=dsn, pooler=settings.database_pooler, setting="FREELOOP_DATABASE_READ_URL")]


@asynccontextmanager
async def open_database(
    settings: Settings, migrations: Path | None = None, *, tasks: bool = False
) -> AsyncIterator[Database]:
    """Open the database that the settings name, migrated; close it after the block, also half-way.

    Args:
        settings: All settings.
        migrations: The folder of the app's migrations; None: there are none.
        tasks: Whether it gets the schema of durable tasks, and their connections: one listens, one beats.

    Raises:
        StartError: It could not be opened within ``FREELOOP_START_TIMEOUT``, or PostgreSQL allows fewer
            connections than the app may take.
        DatabaseUnavailable: It was not there in that time.
    """
    until = time.monotonic() + settings.start_timeout
    replicas = find_replicas(settings)
    async with open_address(settings) as (address, server):
        budget, remaining = plan_budget(settings, tasks=tasks), max(0.1, until - time.monotonic())
        await check_budget(address, budget, replicas=replicas, within=remaining)
        database = Database(
            address,
            size=settings.database_pool_size,
            acquire_timeout=settings.database_acquire_timeout,
            statement_timeout=settings.database_statement_timeout,
            server=server,
            replicas=replicas,
        )
        try:
            await database.open(timeout=max(0.1, until - time.monotonic()))
            if migrations is not None:
                applied = await migrate(address, migrations, timeout=max(1.0, until - time.monotonic()))
                database.note_write()  # no replica may answer that does not have the tables
                if applied:
                    logger.info("migrations applied", extra={"migrations": list(applied)})
            if tasks:
                await migrate(address, TASKS, schema=TASKS_SCHEMA, timeout=max(1.0, until - time.monotonic()))
            yield database
        finally:
            await database.close()


@asynccontextmanager
async def _open_tasks(
    tasks: Tasks, database: Database | None, settings: Settings
) -> AsyncIterator[Tasks | None]:
    if database is None or not tasks.declared:
        yield None
        return
    # Imported here, since without tasks nothing of the engine is loaded; in a thread, since that reads files.
    engine = await asyncio.to_thread(import_module, "freeloop.tasks.pgqueuer_engine")
    async with (
        tasks.open(database, engine.PgQueuerEngine()),
        TaskRetention(database, max_age=settings.tasks_retention),
    ):
        yield tasks


@asynccontextmanager
async def _open_inspection(
    settings: Settings, name: str, questions: Mapping[str, Question]
) -> AsyncIterator[Tree]:
    with Tree() as tree:
        async with open_socket(settings.runtime_dir, name, {"tree": tree.answer, **questions}):
            yield tree


@asynccontextmanager
async def _open_threads(settings: Settings, runs: Callable[[Scope], bool]) -> AsyncIterator[Threads]:
    threads = open_threads(routes=settings.route_threads, calls=settings.threads)
    with adopt_sync_routes(threads, runs):
        yield threads
