"""What was: one sample a second for 15 minutes, and the latest requests that were slow or failed. Bounded."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from freeloop.records import RequestRecord

SECONDS: Final = 900
"""How many samples are kept."""

SLOW: Final = 1.0
"""From how many seconds on a request is kept as a slow one."""

_KEPT: Final = 100  # slow requests, and as many failed ones
_MEASURED: Final = 1_000  # latencies of one second that its quantiles are taken from


class Gauges(NamedTuple):
    """What is read once a second; see :class:`Sample`."""

    shed: int
    running: int
    limit: int | None
    lag: float
    lent: int
    pool: int
    pool_waiting: int
    breakers: int
    tasks: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of one process, or of several together.

    Attributes:
        at: Its end, in whole seconds since the epoch.
        requests: Requests that ended.
        errors: Those of them that failed: a status of 500 or more.
        shed: Requests that were refused since their route is overloaded.
        p50: The latency that half of them did not exceed, in seconds; None: none ended.
        p99: That of 99 of 100.
        running: Requests that run at its end.
        limit: Requests that may run at once, on the routes that have a limit; None: none has.
        lag: How late the event loop was at worst, in seconds.
        lent: Database connections that are lent.
        pool: Those that there may be.
        pool_waiting: Callers that wait for one.
        breakers: Upstreams that are left alone.
        tasks: Durable tasks that wait; None: that is not known here.
    """

    at: int
    requests: int
    errors: int
    shed: int
    p50: float | None
    p99: float | None
    running: int
    limit: int | None
    lag: float
    lent: int
    pool: int
    pool_waiting: int
    breakers: int
    tasks: int | None


class Ended(NamedTuple):
    """A request that was slow or failed.

    Attributes:
        at: When it ended, in seconds since the epoch.
        record: What is known of it.
    """

    at: float
    record: RequestRecord


class Recorder:
    """Takes the samples of one process.

    Args:
        read: Reads what a sample shows beside the requests; called once a second, on the loop.

    Attributes:
        samples: The last 900, the oldest first.
        failed: The last 100 requests that failed, the oldest first.
        slow: The last 100 that took a second or more.
    """

    def __init__(self, read: Callable[[], Gauges]) -> None:
        self.samples: deque[Sample] = deque(maxlen=SECONDS)
        self.failed: deque[Ended] = deque(maxlen=_KEPT)
        self.slow: deque[Ended] = deque(maxlen=_KEPT)
        self._read = read
        self._timer: asyncio.TimerHandle | None = None
        self._shed: int | None = None
        self._at = 0
        self._count = self._errors = 0
        self._latencies: list[float] = []

    def observe(self, record: RequestRecord) -> None:
        """Count an ended request. Each one passes here, so nothing is done that can wait a second."""
        count = self._count = self._count + 1
        if count <= _MEASURED:
            self._latencies.append(record.duration)
        else:
            self._latencies[count % _MEASURED] = record.duration
        if record.status >= 500:
            self._errors += 1
            self.failed.append(Ended(time.time(), record))
        elif record.cause:
            self.failed.append(Ended(time.time(), record))
        elif record.duration >= SLOW:
            self.slow.append(Ended(time.time(), record))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Take samples for the block, on the loop that runs in this thread."""
        self._loop = asyncio.get_running_loop()
        self._set_timer()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _set_timer(self) -> None:
        # At whole seconds, so that those of several processes belong together.
        # A timer that ends a little early does not make two samples of one second.
        now = time.time()
        last = self._at if self._at <= now + 1.0 else 0  # the clock was set back
        self._timer = self._loop.call_later(max(int(now), last) + 1 - now, self._take)

    def _take(self) -> None:
        gauges = self._read()
        self._at = round(time.time())
        shed = 0 if self._shed is None else max(0, gauges.shed - self._shed)
        self._shed = gauges.shed
        latencies = sorted(self._latencies)
        self.samples.append(
            Sample(
                self._at,
                self._count,
                self._errors,
                shed,
                quantile(latencies, 0.5),
                quantile(latencies, 0.99),
                *gauges[1:],
            )
        )
        self._count = self._errors = 0
        self._latencies.clear()
        self._set_timer()


def quantile(ordered: list[float], share: float) -> float | None:
    """Return the value that ``share`` of them do not exceed; None: there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
