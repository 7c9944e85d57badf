"""Ends the requests whose time is over or whose client has gone.

One timer looks at all running requests 25 times a second. A request that ends between two looks has cost an
entry in a set; there is no timer and no task per request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from typing import Final

from starlette.responses import Response

from freeloop.gate import refusals
from freeloop.gate.exchange import Exchange
from freeloop.scope import Cause

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

    def __len__(self) -> int:
        return len(self._running)

    def end(self, request: Exchange, cause: Cause) -> None:
        """Cancel a request now, and answer it where its client still waits: its clean-up may take long."""
        if cause != "disconnect" and request.cause is None and request.status is None:
            response = refusals.deadline_passed if cause == "deadline" else refusals.cut_at_shutdown
            request.answering = asyncio.get_running_loop().create_task(_answer(request, response))
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
            else:
                request.go_on_cancelling()
        if self._running:
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._sweep, context=self._context)


async def _answer(request: Exchange, response: Callable[[Exchange], Response]) -> None:
    request.assist()
    # Whatever fails here is the connection; the request itself ends by its cancellation.
    with suppress(Exception):
        await request.answer(response(request))
