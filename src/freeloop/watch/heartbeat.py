"""A callback on the loop that comes back again and again: how late it is, the loop was."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from types import CodeType
from typing import Final, NamedTuple

from freeloop.metrics import Durations
from freeloop.watch.clocks import RunQueue, count_sleeps

_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds
_IDLE_SLEEPS: Final = 3  # in five ticks; uvicorn itself wakes up each 0.1 s
_CALM: Final = 1.0  # seconds without anything to do, after which the loop counts as idle


class Beat(NamedTuple):
    """One heartbeat, all in seconds.

    Attributes:
        at: When, of :func:`time.monotonic`.
        due: When the next one is.
        cpu: CPU time of the loop's thread so far.
        sleeps: How often that thread has gone to sleep so far; where that is not counted it never is busy.
        delayed: For how long it was ready to run and had no CPU, so far.
    """

    at: float
    due: float
    cpu: float
    sleeps: int
    delayed: float


class Heart:
    """Beats on the loop that runs in this thread.

    It beats each tick while the loop has something to do, and each five ticks while that is idle: an idle
    process wakes up for nothing else.

    Args:
        loop: The loop.
        limit: Seconds between two heartbeats from which on they are kept in :attr:`gaps`.
        tick: Seconds.
        on_gap: Called in the loop's thread, before such a gap is kept; must not raise.

    Attributes:
        last: The last heartbeat.
        gaps: Pairs of heartbeats far apart, to be taken by the watchdog; at most 100 wait.
        lags: How late heartbeats were.
        worst: The latest of them, in seconds, since somebody has set this to 0.
        queue: How long this thread had to wait for a CPU.
        boundary: The code that the loop calls callbacks from: what is further out on the stack is the loop's
            own. None until the first heartbeat.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, limit: float, tick: float, on_gap: Callable[[], None]
    ) -> None:
        self.gaps: deque[tuple[Beat, Beat]] = deque(maxlen=100)
        self.lags = Durations(_BOUNDS)
        self.worst = 0.0
        self.queue = RunQueue()
        self.boundary: CodeType | None = None
        self._loop = loop
        self._limit = limit
        self._tick = self._pause = tick
        self._on_gap = on_gap
        self._active_until = 0.0
        self._slept = 0
        self._counted_since = 0.0
        self.last = self._take()
        self._next: asyncio.Handle = loop.call_soon(self._beat)

    def hurry(self) -> None:
        """Beat at the next turn of the loop; in its thread."""
        self._next.cancel()
        self._next = self._loop.call_soon(self._beat)

    def stop(self) -> None:
        """Beat no longer; in the loop's thread."""
        self._next.cancel()

    def _beat(self) -> None:
        if self.boundary is None:
            self.boundary = sys._getframe(1).f_code
        before, beat = self.last, self._take()
        late = beat.at - before.due
        self.lags.add(max(0.0, late))
        self.worst = max(self.worst, late)
        if beat.at - before.at >= self._limit:
            self._on_gap()
            self.gaps.append((before, beat))  # before it is the last one: until then nobody forgets anything
        self._slept += beat.sleeps - before.sleeps - 1  # once for the heartbeat
        if late > self._tick or self._slept > _IDLE_SLEEPS:
            self._active_until = beat.at + _CALM
        if beat.at - self._counted_since > 4.5 * self._tick:
            self._slept, self._counted_since = 0, beat.at
        self._pause = self._tick if beat.at < self._active_until else 5 * self._tick
        self.last = beat._replace(due=beat.at + self._pause)
        self._next = self._loop.call_later(self._pause, self._beat)

    def _take(self) -> Beat:
        # Nothing here lets go of the GIL: where other threads want it, each time would cost the loop 5 ms.
        now = time.monotonic()
        return Beat(now, now + self._pause, time.thread_time(), count_sleeps(), self.queue.read())
