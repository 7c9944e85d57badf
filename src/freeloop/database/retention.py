"""What is kept only for a time is deleted in bounded batches, by one process at a time."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from freeloop.database.database import Database
from freeloop.database.transaction import Transaction


class Retention(ABC):
    """Deletes what is too old, again and again for as long as it is entered.

    Args:
        database: Where.
        name: What it deletes, for messages and as the last part of the logger's name.
        lock: The number of the advisory lock that its processes share, and nothing else.
        every: Seconds between two rounds.
        batch: How many rows one statement deletes at most.
    """

    def __init__(self, database: Database, *, name: str, lock: int, every: float, batch: int) -> None:
        self._database = database
        self._name = name
        self._lock = lock
        self._every = every
        self._batch = batch
        self._logger = logging.getLogger(f"freeloop.{name}")
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def prune_and_tell(self) -> None:
        """Delete what is too old now, and log what that was."""

    async def delete(self, delete_batch: Callable[[Transaction, int], Awaitable[int]]) -> int:
        """Call ``delete_batch`` until it finds less than a batch; nothing where another process is at it.

        Args:
            delete_batch: Deletes that many rows at most in a transaction, and returns how many.

        Returns:
            How many rows were deleted.
        """
        total = 0
        while True:
            async with self._database.transaction() as transaction:
                if not await transaction.fetch_value("select pg_try_advisory_xact_lock($1)", self._lock):
                    return total
                count = await delete_batch(transaction, self._batch)
            total += count
            if count < self._batch:
                return total

    async def _run(self) -> None:
        while True:
            try:
                await self.prune_and_tell()
            except Exception as error:  # noqa: BLE001  # the next round does what this one could not
                self._logger.warning(
                    "retention of %s failed and is tried again in %s s: %s", self._name, self._every, error
                )
            await asyncio.sleep(self._every)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"{self._name}-retention")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
