"""The composition root: what an app gets from Freeloop, opened in order and closed in reverse.

May be imported by ``service``, ``server`` and ``cli``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from fastapi import APIRouter, params
from starlette.applications import Starlette
from starlette.types import ASGIApp

from freeloop.background import Background
from freeloop.database import Database
from freeloop.gate.bulkheads import find_routes
from freeloop.gate.install import install_gate
from freeloop.gate.middleware import Gate
from freeloop.gate.pages import Page, list_pages
from freeloop.gate.policy import Policy
from freeloop.gate.problems import answer_unhandled
from freeloop.gate.tokens import token_needed
from freeloop.outbound import Client, Source
from freeloop.overview import Overview
from freeloop.resources import Resources
from freeloop.scope import Scope
from freeloop.settings import Settings, read_settings
from freeloop.tasks import RetryPolicy, Tasks
from freeloop.tasks.declare import Options, TaskDecorator
from freeloop.tasks.routes import make_router
from freeloop.tasks.work import Work
from freeloop.watch import Watch, watch

P = ParamSpec("P")
T = TypeVar("T")


class Freeloop:
    """Gives an app scopes, overload protection, a database, threads, background work, an orderly shutdown.

    ::

        app = FastAPI()
        kit = Freeloop(app, migrations="migrations")

    Args:
        app: A FastAPI or Starlette app that has not started yet; None: :meth:`install` or :meth:`wrap` later.
        database: Whether the app has a database: the one that ``FREELOOP_DATABASE_URL`` names, or an embedded
            one. It is open before the app's own lifespan begins, and until that has ended.
        migrations: The folder of its migrations, applied at the start; an app with migrations has a database.
        settings: All settings; read from the environment where left out.
        max_body: The largest request body in bytes (413); None leaves that to the app.
        sources: What the app says of the external APIs that it calls, by name. ``FREELOOP_SOURCES`` may name
            others, and has the last word on these.
        source_defaults: What holds for those of which nothing is said; ``Source()``, where left out.
        local: Whether only this machine reaches the app; where it does not, ``/metrics`` needs a token.
        console: The path of the console, such as ``/console``; None: ``freeloop run`` puts it there, any
            other server shows none.

    Attributes:
        gate: The outermost layer of the app.
        metrics: What ``/metrics`` shows.
        tasks: The durable tasks: start them, look at them, cancel them.
        watch: What watches the event loop while the app runs; None: it has not started.

    Raises:
        SettingsError: A setting has a wrong value.
    """

    def __init__(
        self,
        app: Starlette | None = None,
        *,
        database: bool = False,
        migrations: Path | str | None = None,
        settings: Settings | None = None,
        max_body: int | None = None,
        sources: Mapping[str, Source] | None = None,
        source_defaults: Source | None = None,
        local: bool = False,
        console: str | None = None,
    ) -> None:
        self.settings = settings = settings or read_settings()
        self.gate: Gate | None = None
        self.watch: Watch | None = None
        self.tasks = Tasks()
        self._name = ""
        self._max_body = max_body
        self._local = local
        self._console_path = console
        self._has_database = database or migrations is not None
        self._background = Background(cleanup_timeout=settings.cleanup_timeout)
        self._work = Work(
            self.tasks,
            wanted=settings.worker == "inline",
            concurrency=settings.worker_concurrency,
            heartbeat_timeout=settings.worker_heartbeat_timeout,
            cleanup_timeout=settings.cleanup_timeout,
        )
        self._overview = Overview(
            settings,
            background=self._background,
            tasks=self.tasks,
            work=self._work,
            watch=lambda: self.watch,
            resources=lambda: self._resources,
        )
        self.metrics = self._overview.metrics
        self._resources = Resources(
            settings,
            name=lambda: self._name,
            runs=self._runs,
            database=self._has_database,
            migrations=None if migrations is None else Path(migrations),
            tasks=self.tasks,
            sources=sources or {},
            source_defaults=source_defaults or Source(),
            spawn=self.spawn,
            questions=self._overview.questions,
        )
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
        if self._console_path is not None:
            self.show_console(app, self._console_path)
        answer_unhandled(app)
        app.state.freeloop = self
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(started: Any) -> AsyncIterator[Mapping[str, Any] | None]:  # noqa: ANN401 - the app
            async with self.open(), inner(started) as state, self._serve_tasks():
                try:
                    with self.watching():  # what blocks while the app starts harms nobody
                        yield state
                finally:
                    # Before the app closes what its background executions still use.
                    await self.finish_background()

        app.router.lifespan_context = cast("Any", lifespan)  # Starlette's type allows one kind of state

    def wrap(self, app: ASGIApp) -> Gate:
        """Return a gate around any ASGI app, which stays as it is."""
        if self.gate is not None:
            raise RuntimeError("a kit serves one app: make one Freeloop for each")
        title = getattr(app, "title", "")
        self._name = "" if title == "FastAPI" else title  # what it is called where nobody gave it a name
        settings = self.settings
        self.gate = Gate(
            app,
            observers=self._overview.observers,
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
            owner=self,
        )
        self._overview.read(self.gate)
        return self.gate

    def show_console(self, app: ASGIApp, path: str = "/console") -> ASGIApp:
        """Put the console beside an app; return what is to be served: a Starlette app is that itself.

        Where the app has routes of its own there, or a console already, nothing happens.

        Args:
            app: What the kit is around.
            path: Where the console is to be, without a slash at its end.
        """
        return self._overview.show(app, path, title=self._name)

    def _runs(self, scope: Scope) -> bool:
        return (
            scope in self._background or (self.gate is not None and scope in self.gate) or scope in self._work
        )

    def _list_pages(self, app: ASGIApp) -> dict[str, Page]:
        if not find_routes(app):
            return {}  # whether it has such pages itself cannot be told
        settings = self.settings
        return list_pages(settings.readiness_path, self.metrics, settings.bearer_token, local=self._local)

    def open(self) -> AbstractAsyncContextManager[None]:
        """Open what the app has (see :mod:`freeloop.resources`) for the block; its lifespan does so too.

        Raises:
            StartError: The database could not be opened within ``FREELOOP_START_TIMEOUT``.
            DatabaseUnavailable: It was not there in that time.
        """
        return self._resources.open()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Find what blocks the event loop, for the block; its lifespan does so too.

        :attr:`watch` has what was found, also afterwards. ``FREELOOP_WATCH`` switches it off.
        """
        settings = self.settings
        with ExitStack() as stack:
            if settings.watch:
                self.watch = stack.enter_context(
                    watch(
                        threshold=settings.watch_threshold,
                        backstop=settings.watch_backstop,
                        ignore=settings.watch_ignore,
                    )
                )
            stack.enter_context(self._overview.insights.recording())
            yield

    @property
    def database(self) -> Database:
        """The database, while the kit is open; :data:`freeloop.Db` gives it to a route.

        Raises:
            RuntimeError: The kit is not open, or the app has none.
        """
        return self._resources.database.get()

    @property
    def outbound(self) -> Client:
        """The client for external APIs, while the kit is open; :data:`freeloop.Outbound` gives it to a route.

        Raises:
            RuntimeError: The kit is not open.
        """
        return self._resources.outbound.get().client

    @property
    def guarded_outbound(self) -> Client:
        """The client for URLs that users supply; :data:`freeloop.GuardedOutbound` gives it to a route.

        It calls no address but those of the public internet, and the URLs of configured sources.

        Raises:
            RuntimeError: The kit is not open.
        """
        return self._resources.outbound.get().guarded

    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        timeout: float | None = 600.0,
        retries: int | None = 3,
        backoff: float = 1.0,
        longest_backoff: float = 300.0,
        no_retry: tuple[type[BaseException], ...] = (),
        concurrency: int | None = None,
        rate: float | None = None,
        group_concurrency: int | None = None,
        group_rate: float | None = None,
    ) -> TaskDecorator:
        """Declare a function as a durable task: ``@kit.task()``.

        Args:
            name: What it is called in the database; None: as the function. Keep it when the function moves.
            queue: Which workers take it.
            priority: Higher ones are taken first.
            timeout: Seconds that an execution may take; None: as long as it takes.
            retries: Executions after the first that may fail too; None: without end.
            backoff: Seconds; the first pause is half of it to all of it, each next one twice as long.
            longest_backoff: Seconds that a pause is at most.
            no_retry: Errors after which it is not tried again.
            concurrency: Executions at once at most, on all machines together; None: any.
            rate: Executions that begin in a second at most, likewise, evenly.
            group_concurrency: Executions at once of one group at most (``start(…, group=…)``), likewise.
            group_rate: Executions of one group that begin in a second at most, likewise.

        Raises:
            RuntimeError: The app has no database.
            ValueError: A value is wrong, or the name is taken.
            TypeError: The parameters cannot be JSON.
        """
        if not self._has_database:
            raise RuntimeError("tasks are kept in a database: write Freeloop(app, database=True)")
        retry = RetryPolicy(retries=retries, base=backoff, longest=longest_backoff, never=no_retry)
        options = Options(
            queue=queue,
            priority=priority,
            timeout=timeout,
            retry=retry,
            concurrency=concurrency,
            rate=rate,
            group_concurrency=group_concurrency,
            group_rate=group_rate,
        )
        return TaskDecorator(self.tasks, name, options)

    def task_router(self, *, guards: Sequence[params.Depends] | None = None) -> APIRouter:
        """Return routes under ``/tasks`` that start, list, show, follow, cancel and retry tasks.

        Args:
            guards: Dependencies of every write, and of the list of all tasks; None: ``FREELOOP_TOKEN``, where
                it is set.
        """
        if guards is None:
            guards = [token_needed(lambda _: self.settings.bearer_token)]
        return make_router(self.tasks, guards=guards)

    def become_worker(self, queues: Collection[str] | None = None) -> None:
        """Run tasks in this process, whatever ``FREELOOP_WORKER`` says; before the app's lifespan begins.

        Args:
            queues: Of these queues; None: of all.
        """
        self._work.want(queues)

    @asynccontextmanager
    async def _serve_tasks(self) -> AsyncIterator[None]:
        async with self._work.open(), self._overview.durable.counting():
            yield

    async def run_sync(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a sync function in a thread; at most ``FREELOOP_THREADS`` run at once.

        Raises:
            ThreadsBusy: No thread came free in time (503).
        """
        return await self._resources.threads.get().calls.run(function, *args, **kwargs)

    def spawn(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        """Start an async function that may outlive the request; see :meth:`Background.start`."""
        return self._background.start(function, *args, **kwargs)

    def drain(self) -> None:
        """Begin the shutdown: readiness turns, and no more tasks are taken."""
        if self.gate is not None:
            self.gate.drain()
        self._work.stop()

    def close_streams(self) -> None:
        """End streams of events and WebSockets."""
        if self.gate is not None:
            self.gate.close_streams()
        self._overview.close()

    def cancel(self) -> None:
        """Cancel requests and background executions; hand tasks back, to run again."""
        if self.gate is not None:
            self.gate.cancel()
        self._background.cancel()
        self._work.cancel()

    async def wait_idle(self) -> None:
        """Wait until no request, no background execution and no task runs."""
        if self.gate is not None:
            await self.gate.wait_idle()
        await self._background.wait()
        await self._work.wait_idle()

    async def finish_background(self) -> None:
        """Let background executions and tasks end, then cancel those that do not, each in bounded time.

        Where the server has cancelled them already, it has waited for them too; only what was started since
        is still there.
        """
        until = time.monotonic() + self.settings.shutdown_timeout / 2
        await self._work.finish(self.settings.shutdown_timeout / 2)
        left = max(0.0, until - time.monotonic())
        if self._background.cut or not await self._background.wait(left):
            self._background.cancel()
            await self._background.wait(self.settings.cleanup_timeout)
