"""What is known of a route's latency without a queue: pure, the time comes with each window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_KNOWN: Final = (
    50  # samples until which it is provisional: of requests that begin together, short ones end first
)
_FADE: Final = 1000  # samples after which it follows time instead of counting
_RISE: Final = 30.0  # s in which it follows a latency that is not overload


@dataclass(frozen=True, slots=True)
class Window:
    """What a route did since the last decision.

    Attributes:
        now: Seconds on a monotonic clock.
        span: Its length in seconds.
        rate: Requests that ended with evidence, a second.
        count: Those of them that were admitted since the limit last changed.
        mean: Their mean latency in seconds.
        variance: The variance of their latency.
        earlier_mean: The mean latency of those that ended since the limit last changed and had been admitted
            before; 0.0: none.
        drained_rate: How many of those ended a second while more ran than the limit allows; 0.0: unknown.
        fresh: Seconds since the first request could be admitted after the limit last changed.
        running: Requests that run at its end.
        growth: By how many that is more than at its beginning.
        pressed: Whether the limit was reached in it.
    """

    now: float
    span: float
    rate: float
    count: int
    mean: float
    variance: float
    earlier_mean: float
    drained_rate: float
    fresh: float
    running: int
    growth: int
    pressed: bool


class Baseline:
    """Mean and variance of the latency without a queue.

    Attributes:
        mean: In seconds.
        variance: Of a single request.
    """

    def __init__(self, window: Window) -> None:
        self.mean = window.mean
        self.variance = window.variance
        self._known = window.count

    def is_provisional(self) -> bool:
        """Whether it rests on so few samples that it may be one of short requests only."""
        return self._known < _KNOWN

    def error(self, window: Window) -> float:
        """Return the standard error of the difference between a window's mean and this one."""
        return math.sqrt((self.variance + window.variance) / window.count + self.variance / self._known)

    def scatter(self, window: Window) -> float:
        """Return the squared coefficient of variation: samples times 100 that make a mean certain by 10 %."""
        # Cheap requests without the rare dear one look certain: the variance known before counts too.
        return max(window.variance, self.variance) / max(window.mean, self.mean) ** 2

    def learn(self, window: Window) -> None:
        """Follow a latency that is not overload: slowly up, since it may be a queue, and quickly down."""
        gap = window.mean - self.mean
        error = 3 * self.error(window)
        share = 1 - math.exp(-window.span / _RISE)
        if self._known < _FADE:
            self._known += window.count
            if gap <= error:
                share = max(share, window.count / self._known)
        if gap < -error:
            share = 1.0 if window.mean < self.mean / 2 else 0.5
        self._move(window, share)

    def believe(self, window: Window, share: float) -> None:
        """Take over a latency that no queue of the route has part in; ``share`` of it (0 to 1) at once."""
        certain = self.is_provisional() or abs(window.mean - self.mean) > 3 * self.error(window)
        if not certain:
            share *= window.count / (window.count + self._known)
        self._known = window.count if certain else min(_FADE, self._known + window.count)
        self._move(window, share)

    def _move(self, window: Window, share: float) -> None:
        self.mean += share * (window.mean - self.mean)
        self.variance += share * (window.variance - self.variance)
