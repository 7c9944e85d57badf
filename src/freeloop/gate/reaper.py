"""Ends the requests whose time is over or whose client has gone.

One timer looks at all running requests 20 times a second. A request that ends between two looks has cost an
entry in a set; there is no timer and no task per request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Final

from freeloop.gate.exchange import Exchange
from freeloop.scope import Cause

logger = logging.getLogger("freeloop.gate")

TICK: Final = 0.05


class Reaper:
    """Cancels what is overdue, and again what does not end by that.

    Args:
        cleanup_timeout: Seconds that the clean-up of a cancelled request may take before it is cancelled
            again, with a warning that shows where it stands; and so on, every so many seconds.
    """

    def __init__(self, *, cleanup_timeout: float) -> None:
        self._cleanup_timeout = cleanup_timeout
        self._running: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, request: Exchange) -> None:
        """Begin to look at a request."""
        self._running.add(request)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._sweep)

    def forget(self, request: Exchange) -> None:
        """Stop to look at it."""
        self._running.discard(request)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(tuple(self._running))

    def __len__(self) -> int:
        return len(self._running)

    def end(self, request: Exchange, cause: Cause) -> None:
        """Cancel a request now."""
        request.cancelled_at = time.monotonic()
        request.cancel(cause)

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        for request in self._running:
            if request.cause is None:
                cause = request.overdue(now)
                if cause is not None:
                    self.end(request, cause)
            elif now - request.cancelled_at >= self._cleanup_timeout:
                logger.warning(
                    "a cancelled request does not end",
                    extra={
                        "request_id": request.id,
                        "route": request.route,
                        "cause": request.cause,
                        "stack": request.describe(),
                    },
                )
                self.end(request, request.cause)
        if self._running:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._sweep)
