"""Who waits for a task to change: one look at the database for all who wait in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self
from uuid import UUID

from freeloop.database import Database
from freeloop.events import wait_at_most
from freeloop.tasks import store
from freeloop.tasks.signals import CHANGED, MISSED, Signals

logger = logging.getLogger("freeloop.tasks")

_GAP: Final = 0.02
_POLL: Final = 1.0
_POLL_DEAF: Final = 0.5


class Follower:
    """One who follows a task.

    Attributes:
        revision: What it has seen; 0: nothing.
    """

    def __init__(self, id_: UUID) -> None:
        self.id = id_
        self.revision = 0
        self.news = asyncio.Event()

    async def wait(self) -> None:
        """Wait until the task may have changed since it was last seen, or the watch ends."""
        await self.news.wait()
        self.news.clear()


class Watch:
    """Tells followers that their task has changed, for as long as it is entered.

    Args:
        database: Where the tasks are.
        signals: What says that some have changed.
    """

    def __init__(self, database: Database, signals: Signals) -> None:
        self.ended = False
        """Whether no news will come any more."""
        self._database = database
        self._signals = signals
        self._followers: dict[Follower, None] = {}
        self._poke = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._signals.hear(self._hear)
        self._task = asyncio.create_task(self._run(), name="tasks-watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        self._signals.forget(self._hear)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def end(self) -> None:
        """Wake all followers for the last time."""
        self.ended = True
        for follower in self._followers:
            follower.news.set()

    @asynccontextmanager
    async def follow(self, id_: UUID) -> AsyncIterator[Follower]:
        """Follow a task for the block."""
        follower = Follower(id_)
        self._followers[follower] = None
        self._poke.set()
        if self.ended:
            follower.news.set()
        try:
            yield follower
        finally:
            del self._followers[follower]

    def _hear(self, signal: str) -> None:
        if signal in {CHANGED, MISSED}:
            self._poke.set()

    async def _run(self) -> None:
        while True:
            self._poke.clear()
            if self._followers:
                try:
                    await self._look()
                except Exception as error:  # noqa: BLE001 - the next look may succeed
                    logger.warning("the tasks that are followed could not be read: %s", error)
                await asyncio.sleep(_GAP)
            seconds = None if not self._followers else _POLL if self._signals.heard else _POLL_DEAF
            await wait_at_most(self._poke, seconds)

    async def _look(self) -> None:
        followers = tuple(self._followers)
        found = await store.read_revisions(self._database, list({each.id for each in followers}))
        for follower in followers:
            if found.get(follower.id) != follower.revision:
                follower.news.set()
