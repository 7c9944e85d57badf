"""Connections that are held while nobody uses them: a transaction whose block waits for something else.

That is how pools run empty: a call to an external API in a transaction keeps a connection, and the locks of
its rows, for as long as that API takes.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from freeloop.records import HeldIdle
from freeloop.scope import Lease, current_scope

logger = logging.getLogger("freeloop.database")

_LONG: Final = 1.0  # s that a block may go without a statement; PostgreSQL has no name for what is usual
_MOST: Final = 100
_OTHERS: Final = ("(others)", "")
_UNKNOWN: Final = "(outside of any scope)"  # where nobody notes who borrows what


class IdlePlaces:
    """The lines of code that hold connections idle: each is logged once and counted each time.

    At most 100 lines by route are told apart; further ones are counted together as ``(others)``.

    Args:
        name: The name of the database object, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[tuple[str, str], HeldIdle] = {}

    @property
    def found(self) -> tuple[HeldIdle, ...]:
        """What was found so far, in the order in which it was."""
        return tuple(self._found.values())

    @property
    def counts(self) -> dict[tuple[str, ...], float]:
        """How often, by place and route."""
        return {key: found.times for key, found in self._found.items()}

    def settle(self, lease: Lease) -> None:
        """Look back at the time in which a transaction's connection lay unused, now that it is used again."""
        if lease.idle_since is None:
            return
        seconds = time.monotonic() - lease.idle_since
        if lease.awaited:
            for awaited in lease.awaited.values():
                self._add(awaited.place or lease.place, awaited.kind, lease.place, seconds)
        elif seconds > _LONG:
            self._add(lease.place, "", lease.place, seconds)
        lease.use()

    def _add(self, place: str, awaited: str, transaction: str, seconds: float) -> None:
        scope = current_scope()
        key = (place or _UNKNOWN, scope.route if scope is not None else "")
        if key not in self._found and len(self._found) >= _MOST:
            key = _OTHERS
        before = self._found.get(key)
        if before is None:
            self._found[key] = found = HeldIdle(*key, awaited, transaction, 1, seconds)
            logger.warning(
                "a transaction held its connection idle",
                extra={"database": self._name, **found._asdict(), "remedy": _REMEDY},
            )
        else:
            longest = max(before.longest, seconds)
            self._found[key] = before._replace(times=before.times + 1, longest=longest)


_REMEDY: Final = (
    "Do what waits before the transaction or after it; a connection and the locks of its rows are held "
    "meanwhile. Said once for each line; freeloop_held_idle_total counts all."
)
