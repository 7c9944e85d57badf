"""Identical GETs at the same time make one upstream call, whose answer goes to all who wait for it.

Not the policy of shared reads (:mod:`freeloop.database.departures`): there whoever comes after the query was
sent waits for the next one, so that each sees what was committed before it asked. An upstream promises no
such thing, and the first of many callers would cost a call of its own. What a caller may rely on is that it
sees what this process has written: nobody joins a call that was sent before a write to the same upstream
ended.

The price of a call that survives its first caller is a task, also where nobody else comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

from freeloop.errors import UpstreamTimeout, UpstreamUnreachable, duplicate
from freeloop.outbound.identity import SAFE, Identity, identify
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport, origin_of

S = TypeVar("S")
_Key: TypeAlias = tuple[int, Identity]
_Outcome: TypeAlias = Response | BaseException

# The share of a call's time that callers may differ by and still count as having the same time: those of one
# burst come some milliseconds apart, and are not worth a second call at the end of it.
_ALIKE: Final = 0.05


class Flight(Generic[S]):
    """One call, and who waits for its answer.

    Attributes:
        request: What is sent, with the time that it has.
        sent: When, in the seconds of the clock.
        seats: Who waits, each with the moment until when.
        over: Whether it was answered, has failed, or was given up.
    """

    __slots__ = ("key", "over", "request", "seats", "sent")

    def __init__(self, key: _Key, request: OutboundRequest, now: float) -> None:
        self.key = key
        self.request = request
        self.sent = now
        self.seats: dict[S, float] = {}
        self.over = False

    @property
    def until(self) -> float:
        """When the time is up that its request has."""
        return self.sent + self.request.timeout

    def fly_on(self, now: float) -> list[S] | None:
        """Decide whether to send again, since the call had no answer in time; prepare that.

        The time was that of the caller who came first; others may have more.

        Returns:
            Those whose time is up; None where it is not sent again.
        """
        alike = _ALIKE * self.request.timeout
        latest = max(self.seats.values(), default=now)
        # Before its time was up, it was not the callers' that was: an attempt's, or the upstream's own.
        if now + alike < self.until or latest - now <= alike:
            return None
        due = [seat for seat, until in self.seats.items() if until - now <= alike]
        self.request = replace(self.request, timeout=latest - now)
        self.sent = now
        return due


class Flights(Generic[S]):
    """Decides who waits for which call: the pure policy. ``S`` is what a caller waits with.

    At most one flight of a key can be joined at a time.
    """

    def __init__(self) -> None:
        self._open: dict[_Key, Flight[S]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def join(self, request: OutboundRequest, seat: S, now: float) -> tuple[Flight[S], bool]:
        """Return the flight of a caller, and whether it is a new one, which must be started."""
        # A body that is too large for one may be fine for another.
        key = (request.max_body, identify(request))
        flight = self._open.get(key)
        new = flight is None
        if flight is None:
            flight = self._open[key] = Flight(key, request, now)
        flight.seats[seat] = now + request.timeout
        return flight, new

    def leave(self, flight: Flight[S], seat: S) -> bool:
        """Take a caller out who waits no longer; return whether that was the last one, so that it is over."""
        flight.seats.pop(seat, None)
        if flight.seats or flight.over:
            return False
        self.end(flight)
        return True

    def end(self, flight: Flight[S]) -> None:
        """Take note that a flight is over."""
        flight.over = True
        self._close(flight)

    def note_write(self, request: OutboundRequest) -> None:
        """Let nobody join any more what was sent to the same upstream: it may answer with what was before."""
        origin = origin_of(request.url)
        for flight in [flight for flight in self._open.values() if origin_of(flight.request.url) == origin]:
            self._close(flight)

    def _close(self, flight: Flight[S]) -> None:
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]


_Seat: TypeAlias = asyncio.Future[_Outcome]
_Flight: TypeAlias = Flight[_Seat]


class Coalesce:
    """A layer that sends identical GETs once where they come at the same time.

    They are identical where URL, source, limit of the body and all headers are equal, credentials included,
    but for headers that name one call only, such as ``traceparent``. Of those, the first caller's are sent.

    The call belongs to none of its callers: it goes on where the first one is cancelled, and is cancelled
    where the last one is. Each caller waits within its own time. The call has that of its first caller; where
    that was too short for it and others have more, it is sent again.

    Args:
        transport: What the calls go to.
        clock: Seconds that only ever grow.

    Attributes:
        joined: Calls that waited for another one's answer so far.
    """

    def __init__(self, transport: Transport, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.joined = 0
        self._transport = transport
        self._clock = clock
        self._flights: Flights[_Seat] = Flights()
        # The loop itself holds tasks weakly; a flight that was given up stays until it has ended.
        self._tasks: dict[_Flight, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """How many shared calls are under way, or about to end."""
        return len(self._tasks)

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request, or wait for its like; the contract of :class:`freeloop.outbound.Transport`."""
        if request.method != "GET" or request.content is not None or request.stream or not request.repeatable:
            return await self._send_alone(request)
        loop = asyncio.get_running_loop()
        seat: _Seat = loop.create_future()
        flight, new = self._flights.join(request, seat, self._clock())
        timer = None
        if new:
            # Its own time is the flight's. An empty context keeps its scope and variables out.
            task = loop.create_task(self._fly(flight), name="shared call", context=Context())
            self._tasks[flight] = task
            task.add_done_callback(partial(self._land, flight))
        else:
            self.joined += 1
            timer = loop.call_later(request.timeout, _give_up, seat, request)
        try:
            outcome = await seat
        finally:
            if timer is not None:
                timer.cancel()
            if self._flights.leave(flight, seat):
                self._tasks[flight].cancel("nobody waits for it any more")
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome if new else replace(outcome, request=request)
        finally:
            del outcome, seat  # an error's traceback holds this frame

    async def close(self) -> None:
        """Close the transport, which ends the calls under way."""
        await self._transport.close()

    async def _send_alone(self, request: OutboundRequest) -> Response:
        try:
            return await self._transport.send(request)
        finally:
            # Whatever came of it, it may have been carried out.
            if request.method not in SAFE:
                self._flights.note_write(request)

    async def _fly(self, flight: _Flight) -> None:
        due: Iterable[_Seat] | None = None
        while not flight.over:
            try:
                response = await self._transport.send(flight.request)
            except UpstreamTimeout as error:
                due = flight.fly_on(self._clock())
                if due is None:
                    self._end(flight, error)
                else:
                    _settle(due, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, all who wait are told
                self._end(flight, error)
            else:
                self._end(flight, response)

    def _end(self, flight: _Flight, outcome: _Outcome) -> None:
        self._flights.end(flight)
        _settle(flight.seats, outcome)

    def _land(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        del self._tasks[flight]
        if not flight.over:
            # Not cancelled by us, who do so only when nobody waits: somebody ends all tasks of the loop.
            request = flight.request
            self._end(
                flight,
                UpstreamUnreachable(f"{request.name} was cancelled, with all tasks", source=request.source),
            )
        if not task.cancelled():
            task.result()


def _settle(seats: Iterable[_Seat], outcome: _Outcome) -> None:
    for seat in seats:
        # Not as an exception: that of a caller who is cancelled just now would be called unretrieved.
        if not seat.done():
            seat.set_result(outcome)
            if isinstance(outcome, BaseException):
                outcome = duplicate(outcome)


def _give_up(seat: _Seat, request: OutboundRequest) -> None:
    if not seat.done():
        seat.set_result(
            UpstreamTimeout(
                f"{request.name} did not answer within {request.timeout:g} s, on a call shared with others",
                source=request.source,
                seconds=request.timeout,
            )
        )
