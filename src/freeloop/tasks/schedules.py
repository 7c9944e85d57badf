"""Tasks that start by the clock: declared in code or at run time, once a tick however many processes run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import asyncpg
import orjson

from freeloop.database import Queries, Transaction
from freeloop.errors import NotFound
from freeloop.events import wait_at_most
from freeloop.tasks.declare import Call, Task
from freeloop.tasks.ticks import CatchUp, Rule, find_due, find_zone

if TYPE_CHECKING:
    from freeloop.tasks.client import Tasks

logger = logging.getLogger("freeloop.tasks")

_POLL: Final = 5.0
_PAUSE: Final = 1.0

# What was changed at run time stays, until the code itself says something else.
_DECLARE: Final = """
insert into freeloop.schedules as schedule
    (name, task, arguments, cron, every, zone, catch_up, declared, next_at)
values ($1, $2, $3::text::json, $4, $5, $6, $7, $8, $9)
on conflict (name) do update
    set task = excluded.task, arguments = excluded.arguments, cron = excluded.cron, every = excluded.every,
        zone = excluded.zone, catch_up = excluded.catch_up, declared = excluded.declared,
        next_at = excluded.next_at
    where schedule.declared is distinct from excluded.declared
"""
_COLUMNS: Final = "name, task, arguments::text, cron, every, zone, catch_up, enabled, next_at, last_at"
_DUE: Final = f"""
select {_COLUMNS}, clock_timestamp() as now from freeloop.schedules
where enabled and next_at <= clock_timestamp() and task = any($1::text[])
    and (declared is null or name = any($2::text[]))
order by next_at limit 10 for update skip locked
"""  # noqa: S608 - constants
_ADVANCE: Final = """
update freeloop.schedules set next_at = $2, last_at = coalesce($3, last_at) where name = $1
"""
_NEXT: Final = """
select extract(epoch from min(next_at) - clock_timestamp())::float8 from freeloop.schedules
where enabled and task = any($1::text[]) and (declared is null or name = any($2::text[]))
"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule as it is now.

    Attributes:
        name: What it is called.
        task: The name of the task that it starts.
        arguments: With what, as JSON.
        rule: When.
        catch_up: What becomes of ticks that nobody was there for.
        enabled: Whether it starts anything.
        next_at: The tick that comes next.
        last_at: The latest one that started a task.
    """

    name: str
    task: str
    arguments: str
    rule: Rule
    catch_up: CatchUp
    enabled: bool
    next_at: datetime
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Declared:
    call: Call[Any]
    rule: Rule
    catch_up: CatchUp

    @property
    def text(self) -> str:
        said = [self.call.task.name, self.call.arguments, self.rule.cron, self.rule.every, self.rule.zone]
        return orjson.dumps([*said, self.catch_up]).decode()


class Schedules:
    """The schedules of an app.

    Args:
        tasks: Its tasks.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._declared: dict[str, _Declared] = {}
        self._zones: dict[str, ZoneInfo] = {}
        self._changed = asyncio.Event()

    def declare(
        self,
        task: Task[..., Any] | Call[Any],
        *,
        cron: str | None = None,
        every: float | None = None,
        zone: str = "UTC",
        catch_up: CatchUp = "latest",
        name: str | None = None,
    ) -> None:
        """Have a task started by the clock, as long as the code says so.

        Args:
            task: Which one; with arguments, what its ``bind`` returned.
            cron: Five fields: minute, hour, day, month, day of the week.
            every: Seconds between two ticks, in place of ``cron``; 1 or more.
            zone: The time zone that ``cron`` is read in, by its IANA name.
            catch_up: What becomes of ticks that nobody was there for: ``skip``, ``latest`` (the last of them
                runs), ``all`` (each, 100 at most).
            name: What it is called; None: as the task.

        Raises:
            ValueError: The rule is wrong, or the name is taken.
        """
        call = task if isinstance(task, Call) else task.bind()
        name = name or call.task.name
        if name in self._declared:
            raise ValueError(f"there is a schedule '{name}' already: give one of them another name")
        self._declared[name] = _Declared(call, Rule(cron, every, zone), catch_up)

    async def add(
        self,
        name: str,
        call: Call[Any],
        *,
        cron: str | None = None,
        every: float | None = None,
        zone: str = "UTC",
        catch_up: CatchUp = "latest",
    ) -> None:
        """Add a schedule at run time, or replace one; arguments as of :meth:`declare`."""
        await self._load(zone)
        rule = Rule(cron, every, zone)
        async with self._tasks.database.transaction() as transaction:
            await transaction.execute("delete from freeloop.schedules where name = $1", name)
            await self._write(transaction, name, _Declared(call, rule, catch_up), said=False)
            transaction.after_commit(self._changed.set)

    async def list(self) -> list[Schedule]:
        """Return all schedules by name."""
        rows = await self._tasks.database.fetch(
            f"select {_COLUMNS} from freeloop.schedules order by name"  # noqa: S608 - constants
        )
        await self._load(*(row["zone"] for row in rows))
        return [_read(row) for row in rows]

    async def change(
        self,
        name: str,
        *,
        cron: str | None = None,
        every: float | None = None,
        zone: str | None = None,
        enabled: bool | None = None,
    ) -> None:
        """Change a schedule at run time, until the code declares it differently.

        Args:
            name: Which one.
            cron: Its new rule; None, and no ``every``: as it is.
            every: As above.
            zone: Its new time zone; None: as it is.
            enabled: Whether it starts anything; ticks that pass meanwhile are not made up for.

        Raises:
            NotFound: There is none of this name.
            ValueError: The rule is wrong.
        """
        async with self._tasks.database.transaction() as transaction:
            row = await transaction.fetch_row(
                f"select {_COLUMNS}, clock_timestamp() as now from freeloop.schedules "  # noqa: S608 - constants
                "where name = $1 for update",
                name,
            )
            if row is None:
                raise NotFound(f"There is no schedule '{name}'")
            await self._load(row["zone"], zone or row["zone"])
            old = _read(row)
            ruled = cron is not None or every is not None
            rule = Rule(
                cron if ruled else old.rule.cron, every if ruled else old.rule.every, zone or old.rule.zone
            )
            await transaction.execute(
                "update freeloop.schedules set cron = $2, every = $3, zone = $4, enabled = $5, next_at = $6 "
                "where name = $1",
                name,
                rule.cron,
                rule.every,
                rule.zone,
                old.enabled if enabled is None else enabled,
                # A new rule, or a new begin: what has passed is over.
                old.next_at if rule == old.rule and not enabled else rule.after(row["now"]),
            )
            transaction.after_commit(self._changed.set)

    async def remove(self, name: str) -> None:
        """Remove a schedule that was added at run time; one of the code comes back with the next start."""
        await self._tasks.database.execute("delete from freeloop.schedules where name = $1", name)

    async def run(self) -> None:
        """Start what is due, whenever it is."""
        written = False
        while True:
            self._changed.clear()
            seconds = _PAUSE
            try:
                if not written:
                    await self._write_declared()
                    written = True
                await self._start_due()
                seconds = await self._find_pause()
            except Exception as error:  # noqa: BLE001 - the database may be away; a tick is not lost by that
                logger.warning("schedules could not be looked at: %s", error)
            await wait_at_most(self._changed, seconds)

    async def _load(self, *zones: str) -> None:
        """Have the files of time zones read, off the loop."""
        for zone in {*zones} - self._zones.keys():
            self._zones[zone] = await asyncio.to_thread(find_zone, zone)

    async def _write_declared(self) -> None:
        async with self._tasks.database.transaction() as transaction:
            for name in sorted(self._declared):  # always in the same order, which cannot deadlock
                await self._write(transaction, name, self._declared[name], said=True)

    async def _write(self, queries: Queries, name: str, declared: _Declared, *, said: bool) -> None:
        now: datetime = await queries.fetch_value("select clock_timestamp()")
        await queries.execute(
            _DECLARE,
            name,
            declared.call.task.name,
            declared.call.arguments,
            declared.rule.cron,
            declared.rule.every,
            declared.rule.zone,
            declared.catch_up,
            declared.text if said else None,
            declared.rule.after(now),
        )

    async def _start_due(self) -> None:
        while True:
            async with self._tasks.database.transaction() as transaction:
                rows = await transaction.fetch(_DUE, list(self._tasks.declared), list(self._declared))
                await self._load(*(row["zone"] for row in rows))
                for row in rows:
                    await self._start(transaction, _read(row), row["now"])
            if not rows:
                return

    async def _start(self, transaction: Transaction, schedule: Schedule, now: datetime) -> None:
        """Start what one schedule is due for, and set its next tick: both are there, or neither."""
        due, upcoming = find_due(schedule.rule, schedule.next_at, now, schedule.catch_up)
        task = self._tasks.declared[schedule.task]
        calls = [Call(task, schedule.arguments, f"{schedule.name} {tick.isoformat()}") for tick in due]
        await self._tasks.start_many(calls, in_=transaction)
        await transaction.execute(_ADVANCE, schedule.name, upcoming, due[-1] if due else None)

    async def _find_pause(self) -> float:
        seconds: float | None = await self._tasks.database.fetch_value(
            _NEXT, list(self._tasks.declared), list(self._declared)
        )
        return _POLL if seconds is None else min(_POLL, max(0.0, seconds) + 0.001)


def _read(row: asyncpg.Record | Mapping[str, Any]) -> Schedule:
    return Schedule(
        row["name"],
        row["task"],
        row["arguments"],
        Rule(row["cron"], row["every"], row["zone"]),
        row["catch_up"],
        row["enabled"],
        row["next_at"],
        row["last_at"],
    )
