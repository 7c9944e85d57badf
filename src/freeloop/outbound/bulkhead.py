"""At most so many calls of a source at once: one slow upstream does not take all connections.

As resilience4j's semaphore bulkhead and Polly's concurrency limiter, with a queue that is bounded in length
and in time. Who waits holds no slot, and who leaves hands it to the first in line.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from freeloop.errors import UpstreamBusy
from freeloop.outbound.response import Response
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.waiting_line import WaitingLine


class Compartment:
    """The slots of one source: the pure policy.

    Args:
        most: Calls at once, 1 or more; 100 by default, as many as the transport has connections to one host.
        queue: Calls that may wait for a slot, 0 or more; 1,000 by default: ten turns for each slot.

    Attributes:
        running: Calls that hold a slot now.
    """

    __slots__ = ("most", "queue", "running")

    def __init__(self, *, most: int = 100, queue: int = 1000) -> None:
        if most < 1 or queue < 0:
            raise ValueError(f"most is 1 or more and queue 0 or more, not {most} and {queue}")
        self.most = most
        self.queue = queue
        self.running = 0

    def take(self) -> bool:
        """Take a slot; return False where none is free."""
        if self.running >= self.most:
            return False
        self.running += 1
        return True

    def give_back(self) -> None:
        """Give a slot back."""
        self.running -= 1

    def may_wait(self, waiting: int) -> bool:
        """Return whether one more may wait where so many do."""
        return waiting < self.queue


class _Slots:
    """A compartment and those who wait for it."""

    __slots__ = ("compartment", "line")

    def __init__(self, compartment: Compartment) -> None:
        self.compartment = compartment
        self.line = WaitingLine[None](lambda _: self.leave())

    def leave(self) -> None:
        # The slot is handed over, not freed: it never stands empty for someone to slip in.
        if not self.line.call_next(None):
            self.compartment.give_back()


class Bulkhead:
    """A layer that lets only so many calls of a source through at once.

    Args:
        transport: What the calls go to.
        make: Makes the compartment of a source, whose name is the argument.
        clock: Seconds that only ever grow.

    Attributes:
        refused: Calls for which no slot came free in time, or that found the queue full, so far.
    """

    def __init__(
        self,
        transport: Transport,
        make: Callable[[str], Compartment] = lambda _: Compartment(),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._sources = Sources(
            lambda name: _Slots(make(name)), spare=lambda slots: slots.compartment.running == 0
        )
        self._clock = clock
        self.refused = 0

    @property
    def running(self) -> int:
        """Calls that hold a slot now."""
        return sum(slots.compartment.running for _, slots in self._sources)

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot now."""
        return sum(slots.line.waiting for _, slots in self._sources)

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request once it has a slot; the contract of :class:`freeloop.outbound.Transport`.

        Raises:
            UpstreamBusy: The queue is full, or no slot came free within the call's time.
        """
        slots = self._sources.of(request)
        if not slots.compartment.take():
            request = await self._wait(slots, request)
        try:
            response = await self._transport.send(request)
        except BaseException:
            slots.leave()
            raise
        if response.body is None:
            slots.leave()
        else:
            response.body.when_over(lambda _: slots.leave())
        return response

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    async def _wait(self, slots: _Slots, request: OutboundRequest) -> OutboundRequest:
        """Wait for a slot, which is then taken; return the request with the time that it has left."""
        started = self._clock()
        compartment, waiting = slots.compartment, slots.line.waiting
        if not compartment.may_wait(waiting):
            self.refused += 1
            raise UpstreamBusy(
                f"{request.name} was not called: {compartment.running} of {compartment.most} calls are under "
                f"way, and {waiting} of {compartment.queue} wait. Allow more at once, or call it less.",
                source=request.source,
            )
        try:
            await slots.line.wait(request.timeout)
        except TimeoutError:
            pass
        else:
            remaining = request.timeout - (self._clock() - started)
            if remaining > 0:
                return request.within(remaining)
            slots.leave()
        self.refused += 1
        raise UpstreamBusy(
            f"{request.name} was not called: no slot came free within {request.timeout:g} s "
            f"({compartment.running} of {compartment.most} calls are under way, {waiting} waited before it). "
            "Allow more at once, or more time.",
            source=request.source,
        )
