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
from freeloop.watch.clocks import Reading

_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds
_IDLE_SLEEPS: Final = 3  # in five ticks; uvicorn itself wakes up each 0.1 s
_CALM: Final = 1.0  # seconds without anything to do, after which the loop counts as idle


class Beat(NamedTuple):
    """One heartbeat, all in seconds.

    Attributes:
        due: When the next one is, of :func:`time.monotonic`.
        cpu: CPU time of the loop's thread so far.
        clocks: All clocks, read by that thread; where its sleeps are not counted it never is busy.
    """

    due: float
    cpu: float
    clocks: Reading

    @property
    def at(self) -> float:
        """When it was."""
        return self.clocks.at


class Heart:
    """Beats on the loop that runs in this thread.

    It beats each tick while the loop has something to do, and each five ticks while that is idle: an idle
    process wakes up for nothing else.

    Args:
        loop: The loop.
        limit: Seconds between two heartbeats from which on they are kept in :attr:`gaps`, unless the second
            came when it was due.
        tick: Seconds.
        read: Reads the clocks.
        on_beat: Called in the loop's thread with each heartbeat, and whether it is one to be kept, before it
            is; must not raise.

    Attributes:
        last: The last heartbeat.
        gaps: Pairs of heartbeats far apart, to be taken by the watchdog; at most 100 wait.
        lags: How late heartbeats were.
        worst: The latest of them, in seconds, since somebody has set this to 0.
        patience: By how many seconds one may be late and still counts as punctual.
        boundary: The code that the loop calls callbacks from: what is further out on the stack is the loop's
            own. None until the first heartbeat.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: float,
        tick: float,
        read: Callable[[], Reading],
        on_beat: Callable[[Beat, bool], None],
    ) -> None:
        self.gaps: deque[tuple[Beat, Beat]] = deque(maxlen=100)
        self.lags = Durations(_BOUNDS)
        self.worst = 0.0
        self.boundary: CodeType | None = None
        self._loop = loop
        self._limit = limit
        self._tick = self._pause = tick
        self.patience = tick / 8
        self._read = read
        self._on_beat = on_beat
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
        self._slept += beat.clocks.sleeps - before.clocks.sleeps - 1  # once for the heartbeat
        if late > self._tick or self._slept > _IDLE_SLEEPS:
            self._active_until = beat.at + _CALM
        if beat.at - self._counted_since > 4.5 * self._tick:
            self._slept, self._counted_since = 0, beat.at
        self._pause = self._tick if beat.at < self._active_until else 5 * self._tick
        beat = beat._replace(due=beat.at + self._pause)
        gap = beat.at - before.at >= self._limit and late > self.patience
        self._on_beat(beat, gap)
        if gap:
            self.gaps.append((before, beat))  # before it is the last one: until then nobody forgets anything
        self.last = beat
        self._next = self._loop.call_later(self._pause, self._beat)

    def _take(self) -> Beat:
        # Nothing here lets go of the GIL: where other threads want it, each time would cost the loop 5 ms.
        clocks = self._read()
        return Beat(clocks.at + self._pause, time.thread_time(), clocks)
