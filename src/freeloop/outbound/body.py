"""The body of a streamed answer, which comes part by part and at the reader's pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from freeloop.errors import OutboundError, UpstreamBodyInvalid, UpstreamTimeout, UpstreamUnreachable
from freeloop.outbound.transport import OutboundRequest


class Parts(Protocol):
    """What a transport has to offer for a body: the bytes as they come."""

    async def read(self, seconds: float) -> bytes:
        """Return what came, or wait for it at most so long; nothing at the end.

        Raises:
            OutboundError: There is no more, and should be.
        """
        ...

    def close(self) -> None:
        """Give back the connection: to the pool after the last byte, else by closing it at once."""
        ...


class Body:
    """What is still to come of an answer. It is over once: read to its end, given up, or broken.

    What is read is not buffered beyond one part, so an upstream that is faster than its reader has to wait.

    Args:
        parts: Where the bytes come from.
        request: The call, with the largest body that it allows.

    Attributes:
        received: Bytes so far.
    """

    __slots__ = ("_complete", "_loop", "_over", "_parts", "_request", "_watchers", "received")

    def __init__(self, parts: Parts, request: OutboundRequest) -> None:
        self._over = self._complete = False
        self._loop = asyncio.get_running_loop()
        self._parts = parts
        self._request = request
        self._watchers: list[Callable[[OutboundError | None], object]] = []
        self.received = 0

    def when_over(self, watcher: Callable[[OutboundError | None], object]) -> None:
        """Have a function called when it is over: with None, or with what it broke by.

        For layers that hold something for as long as the call lasts.
        """
        self._watchers.append(watcher)

    async def read(self, seconds: float) -> bytes:
        """Return the next part, or nothing at the end.

        Args:
            seconds: How long to wait for it; with 0 and less, time is up.

        Raises:
            UpstreamTimeout: Nothing came in that time, or there was none (504).
            UpstreamUnreachable: The connection broke, or the body was given up before (502).
            UpstreamBodyInvalid: It is larger than the call allows, or not what its headers say (502).
        """
        if self._over:
            return self._read_nothing()
        try:
            if seconds <= 0:  # also where a part is there: an upstream may send faster than it is read
                raise self._too_late()  # noqa: TRY301 - it ends the body like any other
            part = await self._parts.read(seconds)
            self.received += len(part)
            if self.received > self._request.max_body:
                raise too_large(self._request)  # noqa: TRY301 - it ends the body like any other
        except BaseException as error:
            # A cancelled reader has left, too: nobody reads on in the middle.
            self._end(error if isinstance(error, OutboundError) else None)
            raise
        if not part:
            self._complete = True
            self._end(None)
        return part

    def close(self) -> None:
        """Give up what has not been read; without effect where it is over."""
        self._end(None)

    def __del__(self) -> None:
        # Whoever forgets a stream must not keep its connection and its slot for good. The garbage collector
        # may run in any thread; a loop that is closed has closed its connections.
        if not self._over:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.close)

    def _too_late(self) -> UpstreamTimeout:
        return UpstreamTimeout(
            f"{self._request.name} was to send its whole body in the time that it had; {self.received} bytes "
            "came, and more is to come",
            source=self._request.source,
            seconds=0.0,
        )

    def _read_nothing(self) -> bytes:
        if self._complete:
            return b""
        raise UpstreamUnreachable(
            f"{self._request.name}: expected to read its body before it was closed; it is closed after "
            f"{self.received} bytes",
            source=self._request.source,
        )

    def _end(self, error: OutboundError | None) -> None:
        if self._over:
            return
        self._over = True
        self._parts.close()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher(error)


def too_large(request: OutboundRequest) -> UpstreamBodyInvalid:
    """Return the error of a body that is larger than its call allows."""
    return UpstreamBodyInvalid(
        f"{request.name} answered with more than the {request.max_body} bytes that are allowed. Ask it for "
        "less, or raise the limit.",
        source=request.source,
    )
