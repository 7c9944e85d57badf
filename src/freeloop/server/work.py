"""One process that runs tasks and serves nobody: its start, and its end in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from freeloop.server.overdue import Overdue
from freeloop.server.process import stopped_by_signal
from freeloop.server.shutdown import Drain, Timetable, wait_until


async def work(
    *,
    drain: Drain,
    timetable: Timetable,
    resources: AbstractAsyncContextManager[Any],
    on_working: Callable[[], None],
    flush: Callable[[], None],
) -> Overdue:
    """Run tasks until SIGINT or SIGTERM; a second signal stops waiting for what runs.

    Args:
        drain: What is drained at the end.
        timetable: When each part of the end is over.
        resources: The lifespan of the app, in which its worker runs.
        on_working: Called once tasks are taken.
        flush: Called where the process has to be ended, so that the log is written.

    Returns:
        As of :func:`freeloop.server.process.serve`.
    """
    async with stopped_by_signal(timetable, flush) as (overdue, stop), resources:
        shift = _Shift(drain, timetable)
        stop(shift)
        on_working()
        await shift.run()
    return overdue


class _Shift:
    """Works until it is told to stop."""

    def __init__(self, drain: Drain, timetable: Timetable) -> None:
        self._drain = drain
        self._timetable = timetable
        self._began = 0.0
        self._stopped = asyncio.Event()
        self._hurry = asyncio.Event()

    def stop(self, signalled: float, *, at_once: bool) -> None:
        """Take no more tasks; a second call hands back those that run."""
        del at_once  # nobody has to turn away first
        if self._stopped.is_set():
            self._hurry.set()
            return
        self._began = signalled
        self._drain.drain()
        self._stopped.set()

    async def run(self) -> None:
        """Wait for the stop; let what runs end until the grace is over, then hand it back."""
        await self._stopped.wait()
        await wait_until(self._began + self._timetable.grace, self._drain.wait_idle(), self._hurry.wait())
        self._drain.cancel()
        await wait_until(self._began + self._timetable.cleanup, self._drain.wait_idle())
