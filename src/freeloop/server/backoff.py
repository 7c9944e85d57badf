"""How long to wait before something that failed is started again. Pure; reads the clock it is given."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that double with each failure in a row: 0, 0.5, 1, 2 … 30 seconds, for ever.

    Args:
        clock: Seconds that only rise, such as :func:`time.monotonic`.
        first: Seconds before the second start in a row; the first one is at once.
        most: Seconds that a delay never exceeds.
        healthy_after: Seconds of health after which a failure is the first one again.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        first: float = 0.5,
        most: float = 30.0,
        healthy_after: float = 60.0,
    ) -> None:
        self._clock = clock
        self._first = first
        self._most = most
        self._healthy_after = healthy_after
        self._next = 0.0
        self._healthy_since: float | None = None

    def recover(self) -> None:
        """Health begins now."""
        self._healthy_since = self._clock()

    def fail(self) -> float:
        """Health is over, or never began; return the seconds to wait before the next start."""
        since, self._healthy_since = self._healthy_since, None
        if since is not None and self._clock() - since >= self._healthy_after:
            self._next = 0.0
        delay = self._next
        # Doubled step by step: a power of the count of failures overflows after a night of them.
        self._next = min(self._most, max(self._first, 2 * delay))
        return delay
