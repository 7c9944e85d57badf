"""What is kept only for a time: the change log and the idempotency keys, deleted in bounded batches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from freeloop.database import Database, Transaction
from freeloop.database.retention import Retention

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


class ItemRetention(Retention):
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
        super().__init__(database, name="items", lock=_LOCK, every=every, batch=batch)
        self._max_age = timedelta(seconds=max_age)

    async def prune(self) -> Pruned:
        """Delete everything that is too old now; nothing where another process is at it.

        Raises:
            DatabaseUnavailable, PoolTimeout, StatementTimeout: What is left is deleted next time.
        """
        return Pruned(await self._prune(_PRUNE_CHANGES), await self._prune(_PRUNE_KEYS))

    async def prune_and_tell(self) -> None:
        """Delete what is too old now, and log what that was."""
        pruned = await self.prune()
        if pruned.changes or pruned.keys:
            self._logger.info(
                "retention deleted %d item changes and %d idempotency keys", pruned.changes, pruned.keys
            )

    async def _prune(self, sql: str) -> int:
        async def delete_batch(transaction: Transaction, limit: int) -> int:
            count: int = await transaction.fetch_value(sql, self._max_age, limit)
            return count

        return await self.delete(delete_batch)
