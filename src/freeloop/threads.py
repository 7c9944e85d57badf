"""Sync code off the loop, in threads with a limit of their own.

Any route may use it; it imports only ``errors``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

import anyio.to_thread

from freeloop.errors import ThreadsBusy

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPool:
    """Runs sync functions in threads, at most ``size`` at once.

    A limit of its own keeps slow sync code from using up the threads that the framework shares among all
    ``def`` routes and file responses.

    Args:
        name: What the threads are for; named in errors.
        size: Calls that run at once, 1 or more.
        acquire_timeout: Seconds that a call waits for a free thread.
    """

    def __init__(self, name: str, *, size: int = 40, acquire_timeout: float = 10.0) -> None:
        self.name = name
        self.size = size
        self.acquire_timeout = acquire_timeout
        self._free = asyncio.Semaphore(size)
        self._unlimited = anyio.CapacityLimiter(math.inf)
        self._in_use = 0

    @property
    def in_use(self) -> int:
        """Threads that run a function now, also those whose caller has gone."""
        return self._in_use

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in a thread and return its result.

        A thread cannot be stopped from outside. A cancelled caller leaves at once, but the thread counts
        against the limit until the function returns: abandoned work must not add up.

        Raises:
            ThreadsBusy: No thread came free within ``acquire_timeout`` (503).
        """
        try:
            async with asyncio.timeout(self.acquire_timeout):
                await self._free.acquire()
        except TimeoutError:
            raise ThreadsBusy(
                f"no thread of '{self.name}' came free within {self.acquire_timeout} s "
                f"({self.size} of {self.size} busy). Raise FREELOOP_THREADS or make the calls shorter."
            ) from None
        loop = asyncio.get_running_loop()
        self._in_use += 1
        # The one who takes the ticket answers for the place: the thread once it runs, or the caller who
        # was cancelled first. list.pop is atomic, so never both.
        ticket = [True]

        def release() -> None:
            self._in_use -= 1
            self._free.release()

        def call() -> T:
            if not _take(ticket):
                raise RuntimeError("abandoned before it began")  # nobody awaits it any more
            try:
                return function(*args, **kwargs)
            finally:
                with suppress(RuntimeError):  # the loop has closed: nobody waits for the place
                    loop.call_soon_threadsafe(release)

        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._unlimited)
        except BaseException:
            if _take(ticket):
                release()
            raise


def _take(ticket: list[bool]) -> bool:
    try:
        return ticket.pop()
    except IndexError:
        return False
