"""The engine on pgqueuer: its tables, its statements that queue and take jobs, and its concurrency limits.

Its ``QueueManager`` is left alone. It sends heartbeats from the loop, which a task may block; it ends a job
by its id, whoever has that by then; it ends with the connection that it listens on; and its stop waits for
jobs without handing any back. Here a job has an owner, and each statement that changes one names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from pgqueuer.adapters.persistence.qb import (
    QueryBuilderEnvironment,
    QueryQueueBuilder,
    QuerySchedulerBuilder,
)
from pgqueuer.adapters.persistence.queries import Queries as PgQueuer
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import Channel, QueueEntrypoint, QueueManagerId
from pgqueuer.ports.repository import EntrypointExecutionParameter

from freeloop.database import Queries
from freeloop.database.statements import Statement
from freeloop.tasks.engine import Job, NewJob

# All names, since pgqueuer reads those that are left out from the environment.
NAMES: Final = DBSettings(
    prefix="",
    db_schema="freeloop",
    channel=Channel("freeloop_jobs"),
    function="fn_pgqueuer_changed",
    statistics_table="pgqueuer_statistics",
    queue_status_type="pgqueuer_status",
    queue_table="pgqueuer",
    queue_table_log="pgqueuer_log",
    trigger="tg_pgqueuer_changed",
    schedules_table="pgqueuer_schedules",
    durability=Durability.durable,
    widen_id=False,
)
# Who lives is told by the workers' own beats: no job is taken over for its age.
_NEVER: Final = timedelta(days=36_500)

_REMOVE: Final = Statement(
    "delete from freeloop.pgqueuer where id = any($1::bigint[]) and queue_manager_id = $2 returning id",
    name="tasks_remove_jobs",
)
_REMOVE_QUEUED: Final = """
delete from freeloop.pgqueuer where id = any($1::bigint[]) and status = 'queued' returning id
"""
_PUT_BACK: Final = """
update freeloop.pgqueuer as job
set status = 'queued', queue_manager_id = null, slot = null, updated = now(), attempts = attempts + 1,
    execute_after = now() + again.delay
from unnest($1::bigint[], $2::interval[]) as again(id, delay)
where job.id = again.id and job.queue_manager_id = $3
returning job.id
"""
_WAKE: Final = """
update freeloop.pgqueuer set execute_after = now()
where id = any($1::bigint[]) and status = 'queued'
returning id
"""
_RELEASE: Final = """
update freeloop.pgqueuer set status = 'queued', queue_manager_id = null, slot = null, updated = now()
where queue_manager_id = $1
returning id, payload, entrypoint, priority
"""
_NEXT_DUE: Final = """
select extract(epoch from min(execute_after) - clock_timestamp())::float8 from freeloop.pgqueuer
where entrypoint = any($1::text[]) and status = 'queued' and execute_after > clock_timestamp()
"""


class _Driver:
    """Runs pgqueuer's statements by ours."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        return [dict(row) for row in await self._queries.fetch(query, *args)]


class PgQueuerEngine:
    """Keeps jobs in pgqueuer's tables, in the schema ``freeloop``; implements ``Engine``."""

    new_id = "nextval('freeloop.pgqueuer_id_seq')"
    # As its own enqueue() writes them, but for the row of its log.
    put_fresh = """
    insert into freeloop.pgqueuer (id, priority, entrypoint, payload, execute_after, status)
    select job, priority, name, uuid_send(id), due_at, 'queued' from fresh
    """

    def __init__(self) -> None:
        self._builders: dict[str, Any] = {
            "qbe": QueryBuilderEnvironment(NAMES),
            "qbq": QueryQueueBuilder(NAMES),
            "qbs": QuerySchedulerBuilder(NAMES),
        }

    async def put(self, queries: Queries, jobs: Sequence[NewJob]) -> list[int]:
        """Queue jobs; return their ids in the same order."""
        ids = await self._by(queries).enqueue(
            [job.name for job in jobs],
            [job.task.bytes for job in jobs],
            [job.priority for job in jobs],
            [timedelta() for _ in jobs],
        )
        return [int(each) for each in ids]

    async def take(
        self, queries: Queries, names: Mapping[str, int], *, worker: UUID, limit: int
    ) -> list[Job]:
        """Give jobs that are due to a worker, the most urgent first."""
        jobs = await self._by(queries).dequeue(
            batch_size=limit,
            entrypoints={
                QueueEntrypoint(name): EntrypointExecutionParameter(concurrency_limit=most)
                for name, most in names.items()
            },
            queue_manager_id=QueueManagerId(worker),
            global_concurrency_limit=None,
            heartbeat_timeout=_NEVER,
        )
        return [Job(job.id, UUID(bytes=job.payload), job.entrypoint, job.priority) for job in jobs]

    async def remove(self, queries: Queries, jobs: Sequence[int], *, worker: UUID | None) -> set[int]:
        """Remove jobs that a worker has, or that nobody has (None); return those that were so."""
        if worker is None:
            rows = await queries.fetch(_REMOVE_QUEUED, jobs)
        else:
            rows = await queries.fetch(_REMOVE, jobs, worker)
        return {row["id"] for row in rows}

    async def put_back(self, queries: Queries, delays: Mapping[int, float], *, worker: UUID) -> set[int]:
        """Queue jobs again that a worker has, each after so many seconds; return those that it had."""
        pauses = [timedelta(seconds=delay) for delay in delays.values()]
        return {row["id"] for row in await queries.fetch(_PUT_BACK, list(delays), pauses, worker)}

    async def wake(self, queries: Queries, jobs: Sequence[int]) -> set[int]:
        """Let jobs that nobody has be taken at once, whatever time they waited for; return those."""
        return {row["id"] for row in await queries.fetch(_WAKE, jobs)}

    async def release(self, queries: Queries, worker: UUID) -> list[Job]:
        """Queue again all that a worker has; return it."""
        rows = await queries.fetch(_RELEASE, worker)
        return [
            Job(row["id"], UUID(bytes=row["payload"]), row["entrypoint"], row["priority"]) for row in rows
        ]

    async def next_due(self, queries: Queries, names: Sequence[str]) -> float | None:
        """Return the seconds until the next job becomes due; None: none waits for its time."""
        seconds: float | None = await queries.fetch_value(_NEXT_DUE, names)
        return None if seconds is None else max(0.0, seconds)

    def _by(self, queries: Queries) -> PgQueuer:
        return PgQueuer(_Driver(queries), **self._builders)  # type: ignore[arg-type]  # of a driver it uses fetch only
