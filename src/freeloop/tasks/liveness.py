"""Which workers are dead: a pure decision over what an observer has seen of their beats.

By the observer's own clock, and by whether a count of beats has changed, never by the times that others have
written: neither a clock that jumps nor two that differ make a live worker look dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID


class Liveness:
    """What one observer knows of the other workers.

    Args:
        timeout: Seconds without a beat after which a worker is dead.
        gap: Seconds between two looks beyond which nothing is concluded from what was seen before: it was the
            observer, or the database, that was away.
    """

    def __init__(self, timeout: float, *, gap: float) -> None:
        self._timeout = timeout
        self._gap = gap
        self._looked = 0.0
        self._seen: dict[UUID, tuple[int, float]] = {}

    def look(self, now: float, beats: Mapping[UUID, int]) -> list[UUID]:
        """Return the workers that are dead.

        Args:
            now: Seconds of a monotonic clock.
            beats: How often each of the other workers has beaten so far.
        """
        if now - self._looked > self._gap:
            self._seen.clear()
        self._looked = now
        before, self._seen = self._seen, {}
        dead = []
        for worker, count in beats.items():
            last, since = before.get(worker, (-1, now))
            self._seen[worker] = (count, since if last == count else now)
            if now - self._seen[worker][1] >= self._timeout:
                dead.append(worker)
        return dead
