"""Whether reads and writes of a counter that only grows could have happened one after the other.

A write makes the counter one greater and says to what; a read says what it saw. So the order of values is the
only order that explains a history. It does where nothing that ended before something else began comes behind
it (Herlihy and Wing, Linearizability, 1990).
"""

import heapq
from dataclasses import dataclass
from itertools import count
from math import inf


@dataclass(frozen=True)
class Operation:
    kind: str
    value: int
    started: float
    ended: float

    @property
    def order(self):
        return self.value, self.kind == "read"


class History:
    """Operations with the places of their beginnings and ends in one sequence of events."""

    def __init__(self):
        self._events = count()
        self.operations = []

    def begin(self):
        return next(self._events)

    def end(self, kind, value, started, *, answered=True):
        """Note an operation; a write that took effect unheard has no end."""
        self.operations.append(Operation(kind, value, started, next(self._events) if answered else inf))

    def find_violation(self):
        """Return two operations that no order explains, or None."""
        running, latest = [], None
        for index, operation in enumerate(sorted(self.operations, key=lambda each: each.started)):
            while running and running[0][0] < operation.started:
                _, _, ended = heapq.heappop(running)
                latest = ended if latest is None else max(latest, ended, key=lambda each: each.order)
            if latest is not None and latest.order > operation.order:
                return latest, operation
            heapq.heappush(running, (operation.ended, index, operation))
        return None
