"""A worker's sign of life, sent from a thread of its own, over a connection of its own.

So it beats while a task blocks the loop, computes, or holds all connections of the pool. Only what keeps all
of Python from running stops it (C code that holds the interpreter lock for seconds, a stopped process).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self
from uuid import UUID

from freeloop.database import Database
from freeloop.errors import StartError
from freeloop.events import wait_at_most

logger = logging.getLogger("freeloop.tasks")

_BEAT: Final = """
update freeloop.workers set beats = beats + 1, seen_at = clock_timestamp() where id = $1 returning true
"""
_START: Final = 10.0  # seconds
_JOIN: Final = 10.0


class Heartbeat:
    """Beats for a worker, for as long as it is entered.

    Args:
        database: A pool of one connection that nobody else uses; opened and closed here.
        find_worker: Returns who beats.
        every: Seconds between two beats.
        on_lost: Called in the loop that has entered, with the id of a worker that was declared dead.
    """

    def __init__(
        self,
        database: Database,
        find_worker: Callable[[], UUID],
        *,
        every: float,
        on_lost: Callable[[UUID], object],
    ) -> None:
        self._database = database
        self._find_worker = find_worker
        self._every = every
        self._on_lost = on_lost
        self._stop: Callable[[], object] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        started = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(lambda: self._loop.call_soon_threadsafe(started.set))),
            name="freeloop-heartbeat",
            daemon=True,
        )
        self._thread.start()
        if not await wait_at_most(started, _START):
            raise StartError(f"the thread of a worker's heartbeat did not run within {_START:g} s")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stop is not None:
            with suppress(RuntimeError):  # its loop has ended by itself
                self._stop()
        await asyncio.to_thread(self._thread.join, _JOIN)

    async def _run(self, started: Callable[[], object]) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        started()
        try:
            # A loop that was closed without a word takes no task to its end: others may have them.
            while not stopped.is_set() and not self._loop.is_closed():
                await self._beat()
                await wait_at_most(stopped, self._every)
        finally:
            await self._database.close()

    async def _beat(self) -> None:
        worker = self._find_worker()
        try:
            await self._database.open(timeout=self._every)  # nothing to do from the second time on
            alive = await self._database.fetch_value(_BEAT, worker)
        except Exception as error:  # noqa: BLE001 - the next beat may come through
            logger.warning("a heartbeat of worker %s failed: %s", worker, error)
            return
        if not alive:
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._on_lost, worker)
