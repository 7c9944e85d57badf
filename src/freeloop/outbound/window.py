"""Sums over the last seconds: pure, the time is always an argument.

The time-based sliding window of resilience4j (``SlidingTimeWindowMetrics.java``): partial sums in a ring, and
a total from which a partial sum is subtracted when it falls out.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_SLOTS: Final = 10


class Window:
    """Counts of several kinds over the last ``seconds``, which are forgotten in ten steps.

    Args:
        seconds: How long a count stays, to within a tenth; over 0.
        kinds: How many kinds are counted.

    Attributes:
        totals: The counts in the window, by kind, as of the latest :meth:`move` or :meth:`add`.
    """

    __slots__ = ("_end", "_newest", "_slots", "_width", "totals")

    def __init__(self, seconds: float, kinds: int) -> None:
        if not seconds > 0:
            raise ValueError(f"a window has seconds over 0, not {seconds}")
        self._width = seconds / _SLOTS
        self._newest = 0  # the number of the newest part, counted from time 0
        self._end = self._width
        self._slots = deque([0] * kinds for _ in range(_SLOTS))
        self.totals = [0] * kinds

    def move(self, now: float) -> None:
        """Forget what is older than the window."""
        if now < self._end:
            return
        newest = int(now / self._width)
        for _ in range(min(newest - self._newest, _SLOTS)):
            oldest = self._slots.popleft()
            for kind, count in enumerate(oldest):
                self.totals[kind] -= count
            self._slots.append([0] * len(oldest))
        self._newest = newest
        self._end = (newest + 1) * self._width

    def add(self, now: float, kind: int) -> int:
        """Count one; return its receipt."""
        if now >= self._end:  # asked here too: on every call, and a call costs more than the question
            self.move(now)
        self._slots[-1][kind] += 1
        self.totals[kind] += 1
        return self._newest

    def take_back(self, receipt: int, kind: int) -> None:
        """Undo an :meth:`add`; without effect once it is out of the window."""
        index = receipt - self._newest - 1
        if index >= -_SLOTS:
            self._slots[index][kind] -= 1
            self.totals[kind] -= 1

    def clear(self) -> None:
        """Forget everything."""
        for slot in self._slots:
            slot[:] = [0] * len(slot)
        self.totals = [0] * len(self.totals)
