"""What processes tell one another: that something was queued, has changed, or is to be cancelled.

Sent after a commit and never within a transaction: PostgreSQL lets the commits of transactions that notify
wait for one another. A signal may be lost, where its sender dies in between or the listener is away, so
whoever waits for one looks by itself too, every so often. Within a process a signal takes no detour.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Self, TypeAlias
from uuid import UUID

from freeloop.database import Database
from freeloop.errors import SettingsError

logger = logging.getLogger("freeloop.tasks")
Hearer: TypeAlias = Callable[[str], object]

CHANNEL: Final = "freeloop_tasks"
QUEUED: Final = "queued"
CHANGED: Final = "changed"
CANCEL: Final = "cancel "
MISSED: Final = ""
_GAP: Final = 0.01
_LONGEST_PAUSE: Final = 5.0


class Signals:
    """Sends and hears signals, for as long as it is entered.

    Args:
        database: Over which.

    Attributes:
        heard: Whether those of other processes are heard; they are not through a pooler in transaction mode.
    """

    def __init__(self, database: Database) -> None:
        self.heard = False
        self._database = database
        self._hearers: dict[Hearer, None] = {}
        self._unsent: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._jobs: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._jobs = [
            asyncio.create_task(self._listen(), name="tasks-listen"),
            asyncio.create_task(self._send(), name="tasks-notify"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def hear(self, hearer: Hearer) -> None:
        """Call a function with each signal; with an empty one where some may have been missed."""
        self._hearers[hearer] = None

    def forget(self, hearer: Hearer) -> None:
        """Call it no more."""
        self._hearers.pop(hearer, None)

    def announce_queued(self) -> None:
        """Say that something waits for a worker."""
        self.announce(QUEUED)

    def announce_cancel(self, id_: UUID) -> None:
        """Say that a task is to be cancelled."""
        self.announce(f"{CANCEL}{id_}")

    def announce(self, signal: str) -> None:
        """Tell this process at once, and the others soon; the same signal is sent every 10 ms at most."""
        self._tell(signal)
        self._unsent[signal] = None
        self._wake.set()

    def _tell(self, signal: str) -> None:
        for hearer in tuple(self._hearers):
            hearer(signal)

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            await self.flush()
            await asyncio.sleep(_GAP)

    async def flush(self) -> None:
        """Send what others have not been told yet."""
        self._wake.clear()
        signals = list(self._unsent)
        self._unsent.clear()
        if not signals:
            return
        try:
            await self._database.execute(
                "select pg_notify($1, signal) from unnest($2::text[]) as signal", CHANNEL, signals
            )
        except Exception as error:  # noqa: BLE001 - who waits for it looks by itself
            logger.warning("a signal to other workers was lost: %s", error)

    async def _listen(self) -> None:
        pause = 0.1
        while True:
            try:
                async with self._database.listen(CHANNEL) as notifications:
                    async for notification in notifications:
                        self.heard = True
                        pause = 0.1
                        self._tell(notification.payload)
            except SettingsError as error:
                # Behind a pooler in transaction mode there is nothing to listen on.
                logger.warning("tasks are looked for twice a second, since LISTEN is out of reach: %s", error)
                return
            except Exception as error:  # noqa: BLE001 - without it, looking still finds everything
                logger.warning("the listener for tasks failed and starts again: %s", error)
            self.heard = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
