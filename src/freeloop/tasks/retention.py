"""Tasks are kept for a time after their end, then deleted in bounded batches."""

from __future__ import annotations

import time
from typing import Final

from freeloop.database import Database, Transaction
from freeloop.database.retention import Retention
from freeloop.tasks import store
from freeloop.tasks.ids import oldest_id
from freeloop.tasks.limits import prune as prune_limits

# Any number serves, as long as nothing else locks it: "tasks" in ASCII.
_LOCK: Final = 0x7461736B73


class TaskRetention(Retention):
    """Deletes tasks that are too old, for as long as it is entered.

    Args:
        database: Where.
        max_age: Seconds for which tasks are kept after their end.
        every: Seconds between two rounds.
        batch: How many rows one statement deletes at most.
    """

    def __init__(
        self, database: Database, *, max_age: float, every: float = 60.0, batch: int = 1_000
    ) -> None:
        super().__init__(database, name="tasks", lock=_LOCK, every=every, batch=batch)
        self._max_age = max_age

    async def prune(self) -> int:
        """Delete all tasks that are too old now; nothing where another process is at it. Return how many.

        Raises:
            DatabaseUnavailable, PoolTimeout, StatementTimeout: What is left is deleted next time.
        """
        await prune_limits(self._database)
        return await self.delete(self._delete_batch)

    async def prune_and_tell(self) -> None:
        """Delete what is too old now, and log what that was."""
        count = await self.prune()
        if count:
            self._logger.info("retention deleted tasks", extra={"tasks": count})

    async def _delete_batch(self, transaction: Transaction, limit: int) -> int:
        # A task ends after its start: younger ids need no look, whatever the clock says of their end.
        before = oldest_id(time.time() - self._max_age)
        return await store.prune(transaction, before, self._max_age, limit=limit)
