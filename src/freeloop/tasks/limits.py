"""How many tasks run at once, and how many begin a second, on all machines: of a queue, a task or a group.

Engine and table of tasks know nothing of it. Where a worker has taken a job whose limit is reached, it puts
it back in the same transaction: *parked*, until one that runs ends and wakes it; or, for a rate, with a
*reserved* time. So each job is touched a few times, however many wait. One row a limit is the lock: all who
begin or end something under it come one after the other. Who waits is woken in order, the most urgent first;
one that comes just then may be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from freeloop.database import Queries, Transaction
from freeloop.tasks.declare import Options
from freeloop.tasks.engine import Engine, Job

_FOR_EVER: Final = 3e8  # seconds, almost ten years: until it is woken
_LONGEST: Final = 1e8

_LOCK: Final = """
select name, running, greatest(0, extract(epoch from next_at - clock_timestamp()))::float8 as wait
from freeloop.limits where name = any($1::text[]) order by name for update
"""
_SAVE: Final = """
update freeloop.limits as saved set running = given.running,
    next_at = clock_timestamp() + given.wait * interval '1 second'
from unnest($1::text[], $2::int[], $3::float8[]) as given(name, running, wait) where saved.name = given.name
"""
_GRANT: Final = """
insert into freeloop.permits (job, name, reserved) select * from unnest($1::bigint[], $2::text[], $3::bool[])
on conflict (job, name) do update set reserved = excluded.reserved
"""
_PARK: Final = """
insert into freeloop.parked (name, priority, job) select * from unnest($1::text[], $2::int[], $3::bigint[])
on conflict do nothing
"""
_HELD: Final = "select distinct name from freeloop.permits where job = any($1::bigint[]) and not reserved"
_FREE: Final = """
with gone as (
    delete from freeloop.permits where job = any($1::bigint[]) returning name, reserved
), counted as (
    select name, count(*)::int as count from gone where not reserved group by name
)
update freeloop.limits as freed set running = running - counted.count from counted
where freed.name = counted.name returning freed.name, counted.count
"""
_UNPARK: Final = """
with chosen as (
    select name, job from freeloop.parked where name = $1 order by priority desc, job limit $2
), gone as (
    delete from freeloop.parked as parked using chosen
    where parked.name = chosen.name and parked.job = chosen.job returning parked.job
)
select job from gone
"""
_PRUNE: Final = """
delete from freeloop.limits as old where running = 0 and next_at < clock_timestamp()
    and not exists (select from freeloop.parked where parked.name = old.name)
    and not exists (select from freeloop.permits where permits.name = old.name)
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit.

    Args:
        name: What it is of.
        concurrency: Executions at once at most; None: any.
        rate: Executions that begin in a second at most, evenly; None: any.
    """

    name: str
    concurrency: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"expected a concurrency of 1 or more, or None; got {self.concurrency!r}")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"expected a rate over 0 a second, or None; got {self.rate!r}")


@dataclass(slots=True)
class State:
    """How far a limit is used up.

    Attributes:
        running: Executions under it.
        wait: Seconds until the next may begin, by its rate.
    """

    running: int = 0
    wait: float = 0.0


@dataclass(slots=True)
class Decision:
    """What becomes of jobs.

    Attributes:
        granted: What jobs run under, by job and limit; they begin.
        reserved: What jobs have a time of, by job and limit; they wait for it.
        delays: Seconds that each of those waits.
        parked: Jobs that wait for another one's end, and under which limit.
    """

    granted: list[tuple[int, str]] = field(default_factory=list)
    reserved: list[tuple[int, str]] = field(default_factory=list)
    delays: dict[int, float] = field(default_factory=dict)
    parked: dict[int, str] = field(default_factory=dict)


def find_limits(name: str, options: Options, group: str | None, queues: Mapping[str, Limit]) -> list[Limit]:
    """Return the limits that an execution is under.

    Args:
        name: The task's name.
        options: How it is run; its own concurrency is the engine's business.
        group: The group that it was started in; None: in none.
        queues: The limits of queues.
    """
    found = []
    if options.rate is not None:
        found.append(Limit(f"task {name}", None, options.rate))
    if group is not None and (options.group_concurrency is not None or options.group_rate is not None):
        found.append(Limit(f"group {name} {group}", options.group_concurrency, options.group_rate))
    if options.queue in queues:
        found.append(queues[options.queue])
    return found


def decide(
    wanted: Sequence[tuple[int, Sequence[Limit]]],
    states: Mapping[str, State],
    reserved: set[tuple[int, str]],
) -> Decision:
    """Decide which jobs begin, in their order; ``states`` are changed to what is so then.

    Args:
        wanted: Jobs, and the limits of each.
        states: Of each limit.
        reserved: What jobs have come to a time that was reserved for them.
    """
    decision = Decision()
    for job, limits in wanted:
        full = next(
            (each for each in limits if each.concurrency and states[each.name].running >= each.concurrency),
            None,
        )
        if full is not None:
            decision.parked[job] = full.name
            continue
        rates = [each for each in limits if each.rate and (job, each.name) not in reserved]
        wait = max((states[each.name].wait for each in rates), default=0.0)
        for each in rates:
            assert each.rate is not None  # noqa: S101 - it is one of those that have one
            states[each.name].wait = min(_LONGEST, max(states[each.name].wait, wait) + 1 / each.rate)
        if wait > 0:
            decision.delays[job] = wait
            decision.reserved += [(job, each.name) for each in rates]
            continue
        for each in limits:
            states[each.name].running += 1
            decision.granted.append((job, each.name))
    return decision


async def admit(
    transaction: Transaction,
    engine: Engine,
    jobs: Sequence[Job],
    find: Callable[[Job], Sequence[Limit]],
    *,
    worker: UUID,
) -> tuple[list[Job], set[int]]:
    """Return which of the jobs begin, and which of those under a limit; the others are put back.

    Args:
        transaction: The one that has taken them.
        engine: Whose they are.
        jobs: In their order.
        find: Returns the limits of a job.
        worker: Who has them.
    """
    wanted = [(job.id, limits) for job in jobs if (limits := find(job))]
    if not wanted:
        return list(jobs), set()
    names = sorted({limit.name for _, limits in wanted for limit in limits})
    ids = [job for job, _ in wanted]
    await transaction.execute(
        "insert into freeloop.limits (name) select unnest($1::text[]) on conflict do nothing", names
    )
    states = {
        row["name"]: State(row["running"], row["wait"]) for row in await transaction.fetch(_LOCK, names)
    }
    rows = await transaction.fetch(
        "select job, name from freeloop.permits where job = any($1::bigint[]) and reserved", ids
    )
    decision = decide(wanted, states, {(row["job"], row["name"]) for row in rows})
    await transaction.execute(
        _SAVE, names, [states[name].running for name in names], [states[name].wait for name in names]
    )
    permits = [(*each, False) for each in decision.granted] + [(*each, True) for each in decision.reserved]
    if permits:
        await transaction.execute(_GRANT, *map(list, zip(*permits, strict=True)))
    if decision.parked:
        priorities = {job.id: job.priority for job in jobs}
        await transaction.execute(
            _PARK,
            list(decision.parked.values()),
            [priorities[job] for job in decision.parked],
            list(decision.parked),
        )
    refused = {**decision.delays, **dict.fromkeys(decision.parked, _FOR_EVER)}
    if refused:
        await engine.put_back(transaction, refused, worker=worker)
    return [job for job in jobs if job.id not in refused], set(ids) - refused.keys()


async def free(transaction: Transaction, engine: Engine, jobs: Sequence[int]) -> None:
    """Give back what jobs ran under, and wake as many as may begin in their place."""
    names = [row["name"] for row in await transaction.fetch(_HELD, jobs)]
    await transaction.fetch(_LOCK, names)  # in the same order as those who take
    for row in await transaction.fetch(_FREE, jobs):
        # One more than have ended: where the limit was raised, it is used up bit by bit.
        await _wake(transaction, engine, row["name"], row["count"] + 1)


async def _wake(transaction: Transaction, engine: Engine, name: str, count: int) -> None:
    while count > 0:
        parked = [row["job"] for row in await transaction.fetch(_UNPARK, name, count)]
        if not parked:
            return
        # Those that were cancelled meanwhile leave their turn to others.
        count -= len(await engine.wake(transaction, parked))


async def forget(queries: Queries, job: int) -> None:
    """Forget the time that was reserved for a job, which nobody will have any more."""
    await queries.execute("delete from freeloop.permits where job = $1 and reserved", job)


async def prune(queries: Queries) -> None:
    """Delete limits that nothing is under: each group that ever was has one."""
    await queries.execute(_PRUNE)
