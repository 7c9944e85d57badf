"""What is kept only for a time: the change log and the idempotency keys, deleted in bounded batches."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from freeloop.database import Database

logger = logging.getLogger("freeloop.items")

# Of the oldest rows in the log's own order, those before the first that is young enough to stay: what goes
# is always the log's beginning, so one position says what is gone. Rows that no reader may see yet stay.
_PRUNE_CHANGES: Final = """
with oldest as materialized (
    select stamp, id, at from item_changes where stamp < pg_snapshot_xmin(pg_current_snapshot())
    order by stamp, id limit $2
), kept as materialized (
    select stamp, id from oldest where at >= clock_timestamp() - $1::interval order by stamp, id limit 1
), gone as (
    delete from item_changes using oldest
    where item_changes.stamp = oldest.stamp and item_changes.id = oldest.id
        and not exists (select from kept where (oldest.stamp, oldest.id) >= (kept.stamp, kept.id))
    returning item_changes.stamp, item_changes.id
), moved as (
    update item_changes_horizon as horizon set stamp = last.stamp, id = last.id
    from (select stamp, id from gone order by stamp desc, id desc limit 1) as last
)
select count(*) from gone
"""

_PRUNE_KEYS: Final = """
with old as (
    select key from idempotency_keys where created_at < clock_timestamp() - $1::interval
    order by created_at limit $2 for update skip locked
), gone as (
    delete from idempotency_keys using old where idempotency_keys.key = old.key returning 1
)
select count(*) from gone
"""

# Any number serves, as long as nothing else locks it: "items" in ASCII.
_LOCK: Final = 0x6974656D73


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were deleted."""

    changes: int
    keys: int


class Retention:
    """Deletes what is too old, for as long as it is entered.

    Args:
        database: Where.
        max_age: Seconds for which changes and idempotency keys are kept.
        every: Seconds between two rounds.
        batch: How many rows one statement deletes at most.
    """

    def __init__(
        self, database: Database, *, max_age: float = 86_400.0, every: float = 60.0, batch: int = 1_000
    ) -> None:
        self._database = database
        self._max_age = timedelta(seconds=max_age)
        self._every = every
        self._batch = batch
        self._task: asyncio.Task[None] | None = None

    async def prune(self) -> Pruned:
        """Delete everything that is too old now; nothing where another process is at it.

        Raises:
            DatabaseUnavailable, PoolTimeout, StatementTimeout: What is left is deleted next time.
        """
        return Pruned(await self._prune(_PRUNE_CHANGES), await self._prune(_PRUNE_KEYS))

    async def _prune(self, sql: str) -> int:
        total = 0
        while True:
            async with self._database.transaction() as transaction:
                if not await transaction.fetch_value("select pg_try_advisory_xact_lock($1)", _LOCK):
                    return total
                count: int = await transaction.fetch_value(sql, self._max_age, self._batch)
            total += count
            if count < self._batch:
                return total

    async def _run(self) -> None:
        while True:
            try:
                pruned = await self.prune()
                if pruned.changes or pruned.keys:
                    logger.info(
                        "retention deleted %d item changes and %d idempotency keys",
                        pruned.changes,
                        pruned.keys,
                    )
            except Exception as error:  # noqa: BLE001  # the next round does what this one could not
                logger.warning("retention failed and is tried again in %s s: %s", self._every, error)
            await asyncio.sleep(self._every)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="items-retention")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
