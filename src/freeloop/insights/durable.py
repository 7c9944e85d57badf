"""The durable tasks of an app: they are in its database, so that any process can tell of all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from freeloop.database.statements import Statement
from freeloop.errors import FreeloopError
from freeloop.insights.shared import Shared
from freeloop.tasks import State, Tasks, TaskStatus
from freeloop.tasks.schedules import Schedule

logger = logging.getLogger("freeloop.console")

_EVERY: Final = 5.0  # seconds between two counts of those that wait
_GOOD_FOR: Final = 1.0  # seconds that what is the same for all who look serves them
_MOST: Final = 100_000  # of each name are counted

# By the index on what is queued; the history has none by state, which would cost each task.
_COUNTS: Final = Statement(
    f"""
    select entrypoint as name,
           count(*) filter (where status = 'queued' and execute_after <= now()) as waiting,
           count(*) filter (where status = 'queued' and execute_after > now()) as later,
           count(*) filter (where status = 'picked') as running
    from (select entrypoint, status, execute_after from freeloop.pgqueuer limit {_MOST}) as job
    group by entrypoint order by entrypoint
    """,  # noqa: S608 - a constant
    name="console_task_counts",
)
_WAITING: Final = Statement(
    f"""
    select count(*) from (
        select from freeloop.pgqueuer where status = 'queued' and execute_after <= now() limit {_MOST}
    ) as job
    """,  # noqa: S608 - a constant
    name="console_tasks_waiting",
)
_RUNNING: Final = Statement(
    """
    select encode(payload, 'hex')::uuid as id from freeloop.pgqueuer where status = 'picked'
    order by heartbeat limit 50
    """,
    name="console_tasks_running",
)
_SOON: Final = Statement(
    """
    update freeloop.pgqueuer set execute_after = now()
    where id = (select job from freeloop.tasks where id = $1 and state = 'queued') and status = 'queued'
    returning id
    """,
    name="console_task_run_now",
)
_FAILED: Final = Statement(
    """
    select name, error->>'type' as error, count(*) from freeloop.tasks
    where failed_at is not null and failed_at > now() - interval '15 minutes'
    group by 1, 2 order by 3 desc limit 3
    """,
    name="console_task_failures",
)
_WORKERS: Final = Statement(
    """
    select host, pid, queues, started_at, extract(epoch from now() - seen_at)::float8 as silent
    from freeloop.workers where seen_at > now() - interval '1 minute' order by started_at
    """,
    name="console_workers",
)


@dataclass(frozen=True, slots=True)
class Queue:
    """The tasks of one name.

    Attributes:
        name: Which.
        queue: The queue that they are in; empty: they are declared elsewhere.
        waiting: Those that may run.
        later: Those that wait for their time.
        running: Those that run.
    """

    name: str
    queue: str
    waiting: int
    later: int
    running: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker that is alive, or was so a minute ago.

    Attributes:
        host: Its machine.
        pid: Its process.
        queues: Those that it takes from; None: all.
        started_at: Since when.
        silent: Seconds since its last beat.
    """

    host: str
    pid: int
    queues: list[str] | None
    started_at: datetime
    silent: float


@dataclass(frozen=True, slots=True)
class TasksAnswer:
    """The durable tasks.

    Attributes:
        present: Whether the app has any.
        queues: Counts by name.
        workers: Who runs them.
        running: Those that run.
        failed: The latest that failed.
        schedules: What starts some of them by the clock.
        recent: The latest of all, or of those in the state that was asked for.
        next: What continues ``recent``; None: that was all.
    """

    present: bool = False
    queues: tuple[Queue, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    running: tuple[TaskStatus, ...] = ()
    failed: tuple[TaskStatus, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    recent: tuple[TaskStatus, ...] = ()
    next: UUID | None = None


class TaskInsights:
    """Asks the database about durable tasks, and acts on them.

    Args:
        tasks: The app's.

    Attributes:
        waiting: How many waited at the last count, which is made every 5 s; None: not known.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.waiting: int | None = None
        self._tasks = tasks
        self._same_for_all: Shared[TasksAnswer] = Shared()

    @property
    def present(self) -> bool:
        """Whether there are tasks, and they are open."""
        return bool(self._tasks.declared) and self._tasks.is_open

    @property
    def askable(self) -> bool:
        """Whether a connection is free: what only looks takes none that an app waits for, and never waits."""
        return self.present and self._tasks.database.in_use < self._tasks.database.size

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[None]:
        """Count those that wait, every 5 s, for the block."""
        if not self.present:
            yield
            return
        counter = asyncio.create_task(self._count_forever(), name="count of tasks")
        try:
            yield
        finally:
            counter.cancel()
            with suppress(asyncio.CancelledError):
                await counter

    async def _count_forever(self) -> None:
        while True:
            if self.askable:
                try:
                    self.waiting = await self._tasks.database.fetch_value(_WAITING)
                except FreeloopError:
                    self.waiting = None  # the database is away, which others tell of
            await asyncio.sleep(_EVERY)

    async def read(
        self, *, state: State | None = None, name: str | None = None, before: UUID | None = None
    ) -> TasksAnswer:
        """Return the tasks.

        Args:
            state: Of ``recent``, only those in this state.
            name: Of ``recent``, only those of this name.
            before: Of ``recent``, only those before: ``next`` of another answer.
        """
        if not self.present:
            return TasksAnswer()
        answer = await self._same_for_all.get(None, _GOOD_FOR, self._read_same)
        page = await self._tasks.list(limit=25, state=state, name=name, before=before)
        return replace(answer, recent=tuple(page.tasks), next=page.next)

    async def _read_same(self) -> TasksAnswer:
        database = self._tasks.database
        counts = {row["name"]: row for row in await database.fetch(_COUNTS)}
        ids = [row["id"] for row in await database.fetch(_RUNNING)]
        failed = await self._tasks.list(limit=10, state="failed")
        return TasksAnswer(
            present=True,
            queues=tuple(self._queues(counts)),
            workers=tuple(WorkerRow(**dict(row)) for row in await database.fetch(_WORKERS)),
            running=tuple([await self._tasks.read(id_) for id_ in ids[:20]]),
            failed=tuple(failed.tasks),
            schedules=tuple(await self._tasks.schedules.list()),
        )

    def _queues(self, counts: dict[str, Any]) -> Sequence[Queue]:
        names = sorted({*self._tasks.declared, *counts})
        found = []
        for name in names:
            declared, row = self._tasks.find(name), counts.get(name)
            found.append(
                Queue(
                    name,
                    declared.options.queue if declared else "",
                    *((row["waiting"], row["later"], row["running"]) if row else (0, 0, 0)),
                )
            )
        return found

    async def read_failures(self) -> tuple[tuple[str, str, int], ...]:
        """Return what failed in the last 15 minutes: name, error and how often."""
        rows = await self._tasks.database.fetch(_FAILED)
        return tuple((row["name"], row["error"], row["count"]) for row in rows)

    async def count_workers(self) -> int:
        """Return how many workers are alive."""
        return len(await self._tasks.database.fetch(_WORKERS))

    async def act(self, action: str, id_: UUID, *, who: str) -> bool:
        """Cancel a task, start it again, or let one that waits for its time run now; the log has who did.

        Args:
            action: ``cancel``, ``retry`` or ``run``.
            id_: Which task.
            who: For the log.

        Returns:
            Whether that was possible.

        Raises:
            NotFound: There is no such task (404).
        """
        actions = {"cancel": self._tasks.cancel, "retry": self._tasks.retry, "run": self._run_now}
        done = await actions[action](id_)
        self._same_for_all.clear()
        logger.warning("task: %s by hand", action, extra={"task_id": str(id_), "done": done, "by": who})
        return done

    async def _run_now(self, id_: UUID) -> bool:
        await self._tasks.read(id_)
        async with self._tasks.database.transaction() as transaction:
            found = await transaction.fetch_value(_SOON, id_)
            transaction.after_commit(self._tasks.signals.announce_queued)
        return found is not None
