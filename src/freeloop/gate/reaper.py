"""Ends the requests whose time is over or whose client has gone.

One timer looks at all running requests 25 times a second. A request that ends between two looks has cost an
entry in a set; there is no timer and no task per request. Our own server tells when a client goes; any other
is asked at each look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextvars import Context
from typing import Final

from freeloop.gate.exchange import Exchange

logger = logging.getLogger("freeloop.gate")

TICK: Final = 0.04  # s; where a server is not uvicorn it takes two looks to see that a client has gone


class Reaper:
    """Cancels what is overdue, and again what does not end by that.

    Args:
        cleanup_timeout: Seconds that the clean-up of a cancelled request may take before it is cancelled
            again, with a warning that shows where it stands; and so on, every so many seconds.
    """

    def __init__(self, *, cleanup_timeout: float) -> None:
        self._cleanup_timeout = cleanup_timeout
        self._running: set[Exchange] = set()
        self._events_closed = False
        self._timer: asyncio.TimerHandle | None = None
        # The timer is started by whichever request comes, and must not keep its variables.
        self._context = Context()

    def watch(self, request: Exchange) -> None:
        """Begin to look at a request."""
        self._running.add(request)
        if self._timer is None:
            self._set_timer()

    def forget(self, request: Exchange) -> None:
        """Stop to look at it."""
        self._running.discard(request)

    def __iter__(self) -> Iterator[Exchange]:
        return iter(tuple(self._running))

    def __contains__(self, scope: object) -> bool:
        return scope in self._running

    def __len__(self) -> int:
        return len(self._running)

    def close_events(self) -> None:
        """End streams of events: those that run now, and any that begins later."""
        self._events_closed = True
        for request in self:
            if self._is_closed(request) and request.cause is None:
                request.cancel("shutdown")

    def _is_closed(self, request: Exchange) -> bool:
        return self._events_closed and request.events and not request.answered

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        closing = self._events_closed  # asked once: thousands may wait
        for request in self._running:
            if request.cause is None:
                if closing and self._is_closed(request):
                    request.cancel("shutdown")
                    continue
                # Thousands may wait, most for their deadline only.
                deadline = request.deadline
                if (deadline is not None and now >= deadline) or request.flow.read_paused:
                    cause = request.overdue(now)
                    if cause is not None:
                        request.cancel(cause)
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
                request.cancel(request.cause)
            else:
                request.go_on_cancelling()
        if self._running:
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._sweep, context=self._context)
