"""The statements on our table of tasks. Each runs in the caller's transaction, after the engine's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from freeloop.database import Queries
from freeloop.database.statements import Statement
from freeloop.tasks.engine import Engine
from freeloop.tasks.model import State, TaskPage, TaskStatus

_COLUMNS: Final = """
id, name, queue, priority, key, state, attempt, failures, losses, revision, progress, result, error,
request_id, created_at, due_at, started_at, finished_at, cancel_at
"""

_LOOK: Final = 100_000  # tasks that a page looks at; some 50 ms

# One statement, so that a start by itself needs no transaction around it, and takes one round trip.
_INSERT: Final = """
with fresh as (
    insert into freeloop.tasks
        (id, job, name, queue, priority, key, arguments, group_key, due_at, request_id, traceparent)
    select id, {new_id}, name, queue, priority, key, arguments::json, group_key,
        greatest($1::timestamptz, now() + $2::interval), $3, $4
    from {given}
    on conflict (name, key) where key is not null do nothing
    returning id, job, name, priority, due_at
), put as ({put_fresh})
select id from fresh
"""
# Arrays are slow to make, and most starts are of one.
_GIVEN_ONE: Final = """
(select $5::uuid as id, $6::text as name, $7::text as queue, $8::int as priority, $9::text as key,
    $10::text as arguments, $11::text as group_key)
"""
_GIVEN_MANY: Final = """
unnest($5::uuid[], $6::text[], $7::text[], $8::int[], $9::text[], $10::text[], $11::text[])
    as row(id, name, queue, priority, key, arguments, group_key)
"""
_FIND_KEYED: Final = """
select task.id, task.name, task.key, task.arguments::text from freeloop.tasks as task
join unnest($1::text[], $2::text[]) as given(name, key) on task.name = given.name and task.key = given.key
"""
# The lock on the worker's own row: whoever declares it dead waits for this transaction, and sees its jobs.
_BEGIN: Final = Statement(
    """
    with alive as (select id from freeloop.workers where id = $1 for key share)
    update freeloop.tasks as task
    set state = 'running', worker = $1, attempt = attempt + 1, revision = revision + 1, progress = null,
        started_at = clock_timestamp()
    from unnest($2::uuid[], $3::bigint[]) as given(id, job), alive
    where task.id = given.id and task.job = given.job and task.state = 'queued'
    returning task.id, task.name, task.job, task.attempt, task.failures, task.arguments::text, task.key,
        task.request_id, task.traceparent
    """,
    name="tasks_begin",
)
_FINISH: Final = Statement(
    """
    update freeloop.tasks as task
    set state = end_.state, revision = revision + 1, worker = null,
        result = end_.result::json,
        error = case when end_.state = 'succeeded' then null else coalesce(end_.error::json, task.error) end,
        progress = coalesce(end_.progress::json, task.progress),
        failures = task.failures + end_.failures,
        due_at = case when end_.state = 'queued' then clock_timestamp() + end_.delay else task.due_at end,
        finished_at = case when end_.state = 'queued' then null else clock_timestamp() end,
        failed_at = case when end_.state = 'failed' then clock_timestamp() end
    from unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[],
                $8::interval[]) as end_(id, attempt, state, result, error, progress, failures, delay)
    where task.id = end_.id and task.attempt = end_.attempt and task.state = 'running'
    returning task.id
    """,
    name="tasks_finish",
)
_PROGRESS: Final = Statement(
    """
    update freeloop.tasks as task set progress = given.progress::json, revision = revision + 1
    from unnest($1::uuid[], $2::int[], $3::text[]) as given(id, attempt, progress)
    where task.id = given.id and task.attempt = given.attempt and task.state = 'running'
    """,
    name="tasks_progress",
)
_LOSE: Final = """
update freeloop.tasks
set losses = losses + 1, revision = revision + 1, worker = null,
    state = case when cancel_at is not null then 'cancelled' when losses + 1 >= $2 then 'failed'
                 else 'queued' end,
    error = case when cancel_at is null and losses + 1 >= $2 then $3::text::json else error end,
    finished_at = case when cancel_at is not null or losses + 1 >= $2 then clock_timestamp() end,
    failed_at = case when cancel_at is null and losses + 1 >= $2 then clock_timestamp() end
where id = any($1::uuid[]) and state = 'running'
returning job, state
"""
_CANCEL_QUEUED: Final = """
update freeloop.tasks
set state = 'cancelled', revision = revision + 1,
    cancel_at = clock_timestamp(), finished_at = clock_timestamp()
where id = $1 and state = 'queued' and job = $2
"""
_CANCEL_RUNNING: Final = """
update freeloop.tasks set cancel_at = coalesce(cancel_at, clock_timestamp()), revision = revision + 1
where id = $1 and state = 'running' returning id
"""
_AGAIN: Final = """
update freeloop.tasks
set state = 'queued', revision = revision + 1, job = $2, failures = 0, losses = 0, due_at = clock_timestamp(),
    finished_at = null, failed_at = null, cancel_at = null, result = null, progress = null
where id = $1 and state in ('failed', 'cancelled') returning id
"""
_PRUNE: Final = """
with old as (
    select id from freeloop.tasks
    where id < $1 and state in ('succeeded', 'failed', 'cancelled')
        and finished_at < clock_timestamp() - $2::interval
    order by id limit $3 for update skip locked
), gone as (
    delete from freeloop.tasks as task using old where task.id = old.id returning 1
)
select count(*) from gone
"""


class NewTask(NamedTuple):
    """A row to be written."""

    id: UUID
    name: str
    queue: str
    priority: int
    key: str | None
    arguments: str
    group: str | None


@dataclass(frozen=True, slots=True)
class Begun:
    """An execution that begins."""

    id: UUID
    name: str
    job: int
    attempt: int
    failures: int
    arguments: str
    key: str | None
    request_id: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an execution ended.

    Attributes:
        id: Whose.
        job: The engine's id.
        attempt: Which one.
        state: The task's next state; ``queued``: it runs again.
        result: As JSON.
        error: As JSON.
        progress: As JSON; None: as it is written already.
        failed: Whether it counts as a failure.
        frees: Whether others may have waited for its end, since there is a limit to how many run.
        delay: Seconds until it runs again.
    """

    id: UUID
    job: int
    attempt: int
    state: State
    result: str | None = None
    error: str | None = None
    progress: str | None = None
    failed: bool = False
    frees: bool = False
    delay: float = 0.0


async def plan_anew(transaction: Queries) -> None:
    """Have each statement of this transaction planned for the tables as they are now.

    A prepared statement keeps its plan until the table is analyzed; one that was made while nothing waited
    reads the whole table, once for each batch, when a hundred thousand do.
    """
    await transaction.execute("select set_config('plan_cache_mode', 'force_custom_plan', true)")


async def insert(
    queries: Queries,
    engine: Engine,
    tasks: Sequence[NewTask],
    *,
    delay: float,
    at: datetime | None,
    request_id: str | None,
    traceparent: str | None,
) -> set[UUID]:
    """Write tasks and queue their jobs; return the ids of those whose key was not taken.

    Args:
        queries: Where.
        engine: What keeps the jobs.
        tasks: One or more.
        delay: Seconds until they may run.
        at: When they may run; None: as ``delay`` says.
        request_id: Of the request that starts them.
        traceparent: Of the span that starts them.
    """
    one = len(tasks) == 1
    given: Iterable[Any] = tasks[0] if one else zip(*tasks, strict=True)
    rows = await queries.fetch(
        _compose_insert(engine.new_id, engine.put_fresh, _GIVEN_ONE if one else _GIVEN_MANY),
        at,
        timedelta(seconds=delay),
        request_id,
        traceparent,
        *given,
    )
    return {row[0] for row in rows}


@cache
def _compose_insert(new_id: str, put_fresh: str, given: str) -> Statement:
    return Statement(_INSERT.format(new_id=new_id, put_fresh=put_fresh, given=given), name="tasks_insert")


async def find_keyed(
    queries: Queries, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[UUID, str]]:
    """Return id and arguments of the tasks with these names and keys."""
    rows = await queries.fetch(_FIND_KEYED, [name for name, _ in keys], [key for _, key in keys])
    return {(row["name"], row["key"]): (row["id"], row["arguments"]) for row in rows}


async def find_groups(queries: Queries, ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the groups of those of the tasks that are in one."""
    rows = await queries.fetch(
        "select id, group_key from freeloop.tasks where id = any($1::uuid[]) and group_key is not null", ids
    )
    return {row["id"]: row["group_key"] for row in rows}


async def begin(queries: Queries, worker: UUID, ids: Sequence[UUID], jobs: Sequence[int]) -> list[Begun]:
    """Note that a worker runs tasks from now on; none, where it has been declared dead."""
    return [Begun(*row) for row in await queries.fetch(_BEGIN, worker, ids, jobs)]


async def finish(queries: Queries, endings: Sequence[Ending]) -> set[UUID]:
    """Write how executions ended; return the tasks whose latest execution that was."""
    rows = await queries.fetch(
        _FINISH,
        [each.id for each in endings],
        [each.attempt for each in endings],
        [each.state for each in endings],
        [each.result for each in endings],
        [each.error for each in endings],
        [each.progress for each in endings],
        [int(each.failed) for each in endings],
        [timedelta(seconds=each.delay) for each in endings],
    )
    return {row[0] for row in rows}


async def write_progress(queries: Queries, rows: Sequence[tuple[UUID, int, str]]) -> None:
    """Write how far executions have come: id, attempt and JSON of each."""
    await queries.execute(_PROGRESS, *map(list, zip(*rows, strict=True)))


async def lose(queries: Queries, ids: Sequence[UUID], *, most: int) -> list[int]:
    """Note that the worker of tasks has vanished; return the jobs of those that do not run again.

    Args:
        queries: Where.
        ids: Which ones.
        most: How often that may happen to a task before it counts as failed.
    """
    error = orjson.dumps(
        {
            "type": "WorkerVanished",
            "message": f"the worker that ran it vanished {most} times, so it may be the task that ends "
            "workers (memory, a crash in C code); the logs of the machines tell",
            "traceback": None,
        }
    ).decode()
    rows = await queries.fetch(_LOSE, ids, most, error)
    return [row["job"] for row in rows if row["state"] != "queued"]


async def find_cancelled(queries: Queries, ids: Sequence[UUID]) -> list[UUID]:
    """Return those of the tasks whose cancellation was asked for."""
    rows = await queries.fetch(
        "select id from freeloop.tasks where id = any($1::uuid[]) and cancel_at is not null", ids
    )
    return [row[0] for row in rows]


async def read_job(queries: Queries, id_: UUID) -> tuple[State, int] | None:
    """Return a task's state and its job; None: there is no such task."""
    row = await queries.fetch_row("select state, job from freeloop.tasks where id = $1", id_)
    return None if row is None else (row["state"], row["job"])


async def cancel_queued(queries: Queries, id_: UUID, job: int) -> bool:
    """End a task that waits; its job is removed already."""
    return await queries.execute(_CANCEL_QUEUED, id_, job) == "UPDATE 1"


async def cancel_running(queries: Queries, id_: UUID) -> bool:
    """Ask for the cancellation of a task that runs; whether it does."""
    return await queries.fetch_value(_CANCEL_RUNNING, id_) is not None


async def start_again(queries: Queries, id_: UUID, job: int) -> bool:
    """Queue a task again that has failed or was cancelled; whether it was so."""
    return await queries.fetch_value(_AGAIN, id_, job) is not None


async def read(queries: Queries, id_: UUID) -> TaskStatus | None:
    """Return a task; None: there is none with this id."""
    row = await queries.fetch_row(f"select {_COLUMNS} from freeloop.tasks where id = $1", id_)  # noqa: S608 - constants
    return None if row is None else _status(row)


async def read_revisions(queries: Queries, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the revisions of tasks, those that are gone left out."""
    rows = await queries.fetch("select id, revision from freeloop.tasks where id = any($1::uuid[])", ids)
    return {row["id"]: row["revision"] for row in rows}


async def list_page(
    queries: Queries,
    *,
    limit: int,
    before: UUID | None = None,
    name: str | None = None,
    state: State | None = None,
) -> TaskPage:
    """Return tasks, the latest first: those started before another one, of one name, in one state.

    Names and states have no index, which would cost every task. So it looks at a bounded number of tasks, and
    where few match the page is short, or empty, and says where to go on.
    """
    values: list[Any] = [] if before is None else [before]
    looked = "from freeloop.tasks where " + ("true" if before is None else "id < $1")
    if state == "failed":
        looked += " and failed_at is not null"  # which has an index
    looked += " order by id desc"
    wanted = ["true"]
    for column, value in (("name", name), ("state", state)):
        if value is not None:
            values.append(value)
            wanted.append(f"{column} = ${len(values)}")
    rows = await queries.fetch(
        f"select {_COLUMNS} from (select * {looked} limit {_LOOK}) as task "  # noqa: S608 - constants
        f"where {' and '.join(wanted)} order by id desc limit {int(limit) + 1}",
        *values,
    )
    found = [_status(row) for row in rows[:limit]]
    if len(rows) > limit:
        return TaskPage(tasks=found, next=found[-1].id)
    last: UUID | None = await queries.fetch_value(
        f"select id {looked} limit 1 offset {_LOOK - 1}",
        *filter(None, [before]),
    )
    return TaskPage(tasks=found, next=last)


async def prune(queries: Queries, before: UUID, age: float, *, limit: int) -> int:
    """Delete tasks that have ended so many seconds ago; return how many.

    Args:
        queries: Where.
        before: An id that is greater than each that may be old enough.
        age: Seconds since the end.
        limit: How many at most.
    """
    count: int = await queries.fetch_value(_PRUNE, before, timedelta(seconds=age), limit)
    return count


def _status(row: asyncpg.Record) -> TaskStatus:
    return TaskStatus.model_validate(dict(row))
