"""One look at all tasks for all who ask: what looking costs does not grow with those who watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from freeloop.errors import InspectionFailed
from freeloop.tree.model import Snapshot

SHORTEST: Final = 1.0
"""Seconds that a look is good for at least."""

REST: Final = 20
"""A look is good for so many times what it took: at most 1 / 21 of a core goes into looking."""

PATIENCE: Final = 1.0
"""Seconds without an answer after which a loop is taken for hung."""


class SharedLook:
    """The last look at all tasks of one process; made anew by whoever asks once it is old enough.

    May be used from any thread. One look is made at a time. One that has failed counts as one that was made.

    Args:
        look: Makes one; blocks.
        clock: Tells seconds.
    """

    def __init__(self, look: Callable[[], Snapshot], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._failure = ""
        self._until = float("-inf")

    @property
    def fresh(self) -> Snapshot | None:
        """The last look, where it is still good; None: :meth:`get` has to be asked."""
        until = self._until  # before the look: one that comes meanwhile is there before its time is
        last = self._last
        return last if self._clock() < until else None

    def get(self) -> Snapshot:
        """Return the last look, or a new one. Blocks while one is made.

        Raises:
            InspectionFailed: The last look has failed, and is too young to be made again.
            OSError: The process has ended.
        """
        with self._lock:
            if self._clock() >= self._until:
                return self._look_anew()
            if self._last is None:
                raise InspectionFailed(self._failure)
            return self._last

    def _look_anew(self) -> Snapshot:
        began = self._clock()
        waited = 0.0
        try:
            found = self._look()
            # The time that a look only waits for a loop that hangs is no work.
            waited = PATIENCE if found.hung else 0.0
        except (OSError, InspectionFailed) as error:
            self._last, self._failure = None, str(error)
            raise
        else:
            self._last = found
            return found
        finally:
            now = self._clock()
            self._until = now + max(SHORTEST, REST * (now - began - waited))
