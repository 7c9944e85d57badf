"""Since when a task waits: asyncio does not know, so what was seen is remembered."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from freeloop.tree.futures import Future, Task

_Seen: TypeAlias = "tuple[weakref.ref[Future], float]"


class Sightings:
    """When each wait was seen first.

    A task that waits again waits for another future, so a wait is known by its future. Only weak references
    are kept.
    """

    def __init__(self) -> None:
        self._waits: dict[int, _Seen] = {}
        self._yields: dict[int, tuple[weakref.ref[Task], int]] = {}

    def __len__(self) -> int:
        return len(self._waits)

    def note_wait(self, waiter: Future, now: float) -> float:
        """Return when this wait was seen first, which is now where it was not seen yet."""
        known = self._waits.get(id(waiter))
        if known is not None and known[0]() is waiter:
            return known[1]
        self._waits[id(waiter)] = weakref.ref(waiter), now
        return now

    def note_yield(self, task: Task) -> int:
        """Return at how many looks in a row a task was between two turns that it asked for itself."""
        known = self._yields.get(id(task))
        count = known[1] + 1 if known is not None and known[0]() is task else 1
        self._yields[id(task)] = weakref.ref(task), count
        return count

    def note_work(self, task: Task) -> None:
        """Say that a task was seen elsewhere."""
        if self._yields:
            self._yields.pop(id(task), None)

    def sweep(self, tasks: Iterable[Task], now: float) -> Iterator[None]:
        """See all tasks, and forget waits that have ended; in steps, which the caller spreads."""
        waits: dict[int, _Seen] = {}
        for task in tasks:
            waiter = getattr(task, "_fut_waiter", None)
            if waiter is not None:
                self.note_wait(waiter, now)
                waits[id(waiter)] = self._waits[id(waiter)]
            yield
        self._waits = waits
        self._yields = {key: seen for key, seen in self._yields.items() if seen[0]() is not None}
