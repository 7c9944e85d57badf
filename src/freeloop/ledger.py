"""Where the time of one unit of work went.

It imports nothing of ours; the rooms write to it, the gate reads it.
"""

from __future__ import annotations

import time
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["queue", "connection", "sql", "upstream", "thread-wait", "thread"]

APP: Final = "app"
KINDS: Final[tuple[str, ...]] = (
    "queue",  # waiting at the gate
    "connection",  # waiting for a database connection
    "sql",  # statements
    "upstream",  # calls to external APIs
    "thread-wait",  # waiting for a thread
    "thread",  # sync code in a thread
    APP,  # everything else: our own code, and what it awaits that is none of the above
)


class Ledger:
    """Time by class, by the wall clock: two statements at once of 0.1 s each took 0.1 s, not 0.2.

    Written on the loop's thread only.
    """

    __slots__ = ("_any", "_any_since", "_any_spent", "_open", "_since", "_spent")

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._any = 0
        self._any_since = 0.0
        self._any_spent = 0.0

    def enter(self, kind: Kind) -> None:
        """Begin to spend time on ``kind``."""
        now = time.monotonic()
        count = self._open.get(kind, 0)
        if not count:
            self._since[kind] = now
        self._open[kind] = count + 1
        if not self._any:
            self._any_since = now
        self._any += 1

    def leave(self, kind: Kind) -> None:
        """End it; each :meth:`enter` has one."""
        now = time.monotonic()
        count = self._open[kind] = self._open[kind] - 1
        if not count:
            self._spent[kind] = self._spent.get(kind, 0.0) + now - self._since[kind]
        self._any -= 1
        if not self._any:
            self._any_spent += now - self._any_since

    def read(self, total: float) -> dict[str, float]:
        """Return the seconds of each class that has any, what runs now included.

        Args:
            total: Seconds that the unit of work has taken in all; what no class accounts for is ``app``.
        """
        now = time.monotonic()
        spent = dict(self._spent)
        for kind, count in self._open.items():
            if count:
                spent[kind] = spent.get(kind, 0.0) + now - self._since[kind]
        accounted = self._any_spent + (now - self._any_since if self._any else 0.0)
        spent[APP] = max(0.0, total - accounted)
        return spent
