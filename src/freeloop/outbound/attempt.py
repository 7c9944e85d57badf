"""One attempt: counted, and with a time of its own, so that a call that hangs leaves time for another.

It starts when the permit is given: this layer stands below all that wait. It has no timer of its own, since
every transport keeps to ``request.timeout``; it shortens that.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine
from typing import Any

from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport


class AttemptTimeout:
    """A layer that gives each attempt at most so many seconds of those that the call has left.

    Args:
        transport: Makes the attempt.
        seconds: Over 0; infinity, the default: all that are left. A limit below what the upstream takes
            turns each of its answers into a failure, so it is set by who knows the upstream, at some three
            times its slowest.

    Attributes:
        attempts: How many were made so far.
    """

    def __init__(self, transport: Transport, seconds: float = math.inf) -> None:
        if not seconds > 0:
            raise ValueError(f"an attempt has seconds over 0, not {seconds}")
        self.attempts = 0
        self._transport = transport
        self._seconds = seconds

    # Not async: it has nothing to wait for, and every call would pay for a frame.
    def send(self, request: OutboundRequest) -> Coroutine[Any, Any, Response]:
        """Send the request; the contract of :class:`freeloop.outbound.Transport`.

        Raises:
            UpstreamTimeout: The attempt's time was up.
        """
        self.attempts += 1
        if request.timeout > self._seconds:
            request = request.within(self._seconds)
        return self._transport.send(request)

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()
