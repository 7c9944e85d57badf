"""What an app does with its tasks: declare, start, look, cancel, start again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from freeloop.database import Database, Queries, Transaction
from freeloop.errors import Conflict, NotFound, Unprocessable
from freeloop.outbound.trace import add_trace
from freeloop.scope import current_scope
from freeloop.tasks import store
from freeloop.tasks.declare import Call, Task
from freeloop.tasks.engine import Engine, NewJob
from freeloop.tasks.execution import Middleware
from freeloop.tasks.handle import Handle
from freeloop.tasks.ids import make_id
from freeloop.tasks.limits import Limit, forget
from freeloop.tasks.model import State, TaskPage, TaskStatus
from freeloop.tasks.schedules import Schedules
from freeloop.tasks.signals import CHANGED, Signals
from freeloop.tasks.watch import Watch

R = TypeVar("R")
T = TypeVar("T")

_TRIES: Final = 10


class Tasks:
    """The tasks of one app.

    Attributes:
        declared: Those that were declared, by name.
        middleware: What is called around each execution, the outermost first.
        queue_limits: The limits of queues.
        schedules: What starts some of them by the clock.
    """

    def __init__(self) -> None:
        self.middleware: list[Middleware] = []
        self.queue_limits: dict[str, Limit] = {}
        self.schedules = Schedules(self)
        self.declared: dict[str, Task[..., Any]] = {}
        self._engine: Engine | None = None
        self._database: Database | None = None
        self._signals: Signals | None = None
        self._watch: Watch | None = None

    def declare(self, task: Task[..., Any]) -> None:
        """Add a task to those that are run here.

        Raises:
            ValueError: The name is taken.
        """
        if task.name in self.declared:
            raise ValueError(f"there is a task '{task.name}' already: give one of them another name")
        self.declared[task.name] = task

    def limit_queue(self, queue: str, *, concurrency: int | None = None, rate: float | None = None) -> None:
        """Limit all tasks of a queue together, on all machines; all that run them have to say the same.

        Args:
            queue: Which one.
            concurrency: Executions at once at most; None: any.
            rate: Executions that begin in a second at most, evenly; None: any.
        """
        self.queue_limits[queue] = Limit(f"queue {queue}", concurrency, rate)

    def find(self, name: str) -> Task[..., Any] | None:
        """Return the task that was declared under a name, or None."""
        return self.declared.get(name)

    @asynccontextmanager
    async def open(self, database: Database, engine: Engine) -> AsyncIterator[Tasks]:
        """Make it of use for the block.

        Args:
            database: Where the tasks are; migrated.
            engine: What keeps their jobs.
        """
        signals = Signals(database)
        watch = Watch(database, signals)
        async with signals, watch:
            self._database, self._engine, self._signals, self._watch = database, engine, signals, watch
            try:
                yield self
            finally:
                self._database = self._engine = self._signals = self._watch = None

    @property
    def is_open(self) -> bool:
        """Whether it is of use now."""
        return self._database is not None

    @property
    def database(self) -> Database:
        """Where the tasks are.

        Raises:
            RuntimeError: It is not open.
        """
        return _opened(self._database)

    @property
    def engine(self) -> Engine:
        """What keeps their jobs."""
        return _opened(self._engine)

    @property
    def signals(self) -> Signals:
        """What tells of changes."""
        return _opened(self._signals)

    @property
    def watch(self) -> Watch:
        """What tells followers."""
        return _opened(self._watch)

    async def start(
        self,
        task: Task[..., R] | Call[R],
        *args: Any,  # noqa: ANN401 - checked by the task's own annotations
        in_: Transaction | None = None,
        key: str | None = None,
        group: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        **kwargs: Any,  # noqa: ANN401 - as above
    ) -> Handle[R]:
        """Start a task.

        Args:
            task: Which one; or what its ``bind`` returned, and no arguments.
            args: Its arguments.
            in_: A transaction: the task exists if and only if that commits. None: one of its own.
            key: Makes it unique among the tasks of its name, for as long as they are kept: where there is one
                with it, that is returned, whatever the arguments (``Handle.created`` tells).
            group: What it shares the limits of a group with, such as a customer's id.
            delay: Seconds until it may run.
            at: When it may run, with a time zone.
            kwargs: Its arguments by name.

        Raises:
            PayloadRefused: The arguments do not fit (422).
            DatabaseUnavailable: It may have been started or not; with a key, starting it again is safe.
        """
        call = task if isinstance(task, Call) else task.bind(*args, **kwargs)
        if isinstance(task, Call) and (args or kwargs):
            raise TypeError("start(task.bind(...)) takes no further arguments of the task")
        if key is not None:
            call = call.keyed(key)
        if group is not None:
            call = call.grouped(group)
        (handle,) = await self.start_many([call], in_=in_, delay=delay, at=at)
        return handle

    async def start_many(
        self,
        calls: Iterable[Call[R]],
        *,
        in_: Transaction | None = None,
        delay: float | None = None,
        at: datetime | None = None,
    ) -> list[Handle[R]]:
        """Start many tasks at once: all of them or, where it fails, none.

        Args:
            calls: What ``bind`` of tasks returned.
            in_: As of :meth:`start`.
            delay: As of :meth:`start`.
            at: As of :meth:`start`.
        """
        given = list(calls)
        _check_time(delay, at)
        for call in given:
            for what, text in (("key", call.key), ("group", call.group)):
                if text is not None and not 1 <= len(text) <= 255:
                    raise Unprocessable(f"A {what} has 1 to 255 characters", f"Got {len(text)} of them.")
        if not given:
            return []
        handles = await self._write(in_ or self.database, given, delay or 0.0, at)
        if in_ is None:
            self.signals.announce_queued()
        else:
            in_.after_commit(self.signals.announce_queued)
        return handles

    async def _write(
        self, queries: Queries, calls: Sequence[Call[R]], delay: float, at: datetime | None
    ) -> list[Handle[R]]:
        tasks = [
            store.NewTask(
                make_id(),
                call.task.name,
                call.task.options.queue,
                call.task.options.priority,
                call.key,
                call.arguments,
                call.group,
            )
            for call in calls
        ]
        scope = current_scope()
        trace: dict[str, str] = {}
        add_trace(trace)
        created = await store.insert(
            queries,
            self.engine,
            tasks,
            delay=delay,
            at=at,
            request_id=scope.id if scope else None,
            traceparent=trace.get("traceparent"),
        )
        if len(created) == len(tasks):
            return [
                Handle(self, task.id, task.name, created=True, arguments=task.arguments) for task in tasks
            ]
        known = await store.find_keyed(
            queries, [(task.name, task.key) for task in tasks if task.key is not None]
        )
        return [
            Handle(self, task.id, task.name, created=True, arguments=task.arguments)
            if task.id in created
            else Handle(
                self,
                known[task.name, str(task.key)][0],
                task.name,
                arguments=known[task.name, str(task.key)][1],
            )
            for task in tasks
        ]

    def get(self, id_: UUID, name: str = "") -> Handle[Any]:
        """Return a handle of a task by its id, without asking whether there is one."""
        return Handle(self, id_, name)

    async def read(self, id_: UUID) -> TaskStatus:
        """Return a task.

        Raises:
            NotFound: There is none with this id (404).
        """
        status = await store.read(self.database, id_)
        if status is None:
            raise _not_found(id_)
        return status

    async def list(
        self,
        *,
        limit: int = 50,
        before: UUID | None = None,
        name: str | None = None,
        state: State | None = None,
    ) -> TaskPage:
        """Return a page of the tasks, the latest first.

        It takes some 0.05 s at most, however many tasks there are: of a name or a state that few have, a page
        may be short, or empty, and still have a ``next``.

        Args:
            limit: How many at most.
            before: ``next`` of the page before.
            name: Only those of this name.
            state: Only those in this state.
        """
        return await store.list_page(self.database, limit=limit, before=before, name=name, state=state)

    async def cancel(self, id_: UUID) -> bool:
        """Cancel a task: one that waits ends at once; one that runs is cancelled where it does.

        Returns:
            Whether there was something to cancel; False: it had ended before.

        Raises:
            NotFound: There is none with this id (404).
            Conflict: It changes again and again (409): try again.
        """
        for _ in range(_TRIES):
            async with self.database.transaction() as transaction:
                found = await store.read_job(transaction, id_)
                if found is None:
                    raise _not_found(id_)
                state, job = found
                if state == "running" and await store.cancel_running(transaction, id_):
                    transaction.after_commit(partial(self.signals.announce_cancel, id_))
                    return True
                # The job first, which a worker takes first too.
                if state == "queued" and await self.engine.remove(transaction, [job], worker=None):
                    await forget(transaction, job)
                    await store.cancel_queued(transaction, id_, job)
                    transaction.after_commit(partial(self.signals.announce, CHANGED))
                    return True
                if state not in {"queued", "running"}:
                    return False
            # It has changed since it was read: a worker has taken it, or it has ended.
        raise Conflict(
            f"The task {id_} could not be cancelled",
            f"It has changed {_TRIES} times while it was looked at. Try again.",
        )

    async def retry(self, id_: UUID) -> bool:
        """Start a task again that has failed or was cancelled, with the same id and arguments.

        Returns:
            Whether it did; False: it waits, runs, or has succeeded.

        Raises:
            NotFound: There is none with this id (404).
        """
        status = await self.read(id_)
        async with self.database.transaction() as transaction:
            (job,) = await self.engine.put(transaction, [NewJob(id_, status.name, status.priority)])
            if await store.start_again(transaction, id_, job):
                transaction.after_commit(self.signals.announce_queued)
                return True
            await self.engine.remove(transaction, [job], worker=None)
            return False


def _check_time(delay: float | None, at: datetime | None) -> None:
    if delay is not None and at is not None:
        raise ValueError("a task starts after a delay or at a time, not both")
    if delay is not None and not delay >= 0:
        raise ValueError(f"expected a delay of 0 or more seconds; got {delay!r}")
    if at is not None and at.tzinfo is None:
        raise ValueError(f"expected a time with a time zone, such as datetime.now(UTC); got {at!r}")


def _not_found(id_: UUID) -> NotFound:
    return NotFound(
        f"There is no task {id_}",
        f"No task has the id {id_}: it was never started, not committed, or is no longer kept.",
    )


def _opened(value: T | None) -> T:
    if value is None:
        raise RuntimeError(
            "tasks are not open: run the app with its lifespan, or use 'async with kit.open()'"
        )
    return value
