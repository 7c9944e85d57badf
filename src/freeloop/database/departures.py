"""Who is answered by which query: the policy of shared reads, without I/O."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

Q = TypeVar("Q")


class Flight(Generic[Q]):
    """One query, and who waits for its answer.

    Attributes:
        query: What to ask.
        alone: Whether its one caller asks for itself, and nobody can join.
        seats: Those who wait, where it is not alone; the caller of :meth:`Departures.join` puts itself there.
        departed: Whether the query was sent.
        over: Whether it was answered, has failed, or was given up.
    """

    __slots__ = ("alone", "departed", "key", "over", "query", "seats")

    def __init__(self, key: Hashable, query: Q, *, alone: bool) -> None:
        self.key = key
        self.query = query
        self.alone = alone
        self.seats: set[Any] = set()
        self.departed = False
        self.over = False


class Departures(Generic[Q]):
    """Decides which flight a caller is on; does no I/O, knows no clock.

    Of each key one flight runs, and at most one more waits for its end. A flight can be joined until it
    departs. The first of a key is alone: with nobody to share with, a query costs what it costs anyway.
    What :meth:`leave` and :meth:`end` return must be started.
    """

    def __init__(self) -> None:
        self._boarding: dict[Hashable, Flight[Q]] = {}
        self._running: dict[Hashable, Flight[Q]] = {}

    def flights(self) -> set[Flight[Q]]:
        """Return those that run or wait."""
        return {*self._boarding.values(), *self._running.values()}

    def join(self, key: Hashable, query: Q) -> tuple[Flight[Q], bool]:
        """Return the flight of a caller that asks now, and whether the caller must start it for all."""
        flight = self._boarding.get(key)
        if flight is not None:
            return flight, False
        before = self._running.get(key)
        flight = Flight(key, query, alone=before is None)
        if before is None:
            self._running[key] = flight
            return flight, False
        self._boarding[key] = flight
        if before.departed:
            return flight, False
        # Who is alone there waits for a connection. To wait for its end would be to queue twice.
        self._running[key] = flight
        return flight, True

    def depart(self, flight: Flight[Q]) -> None:
        """Let nobody join any more: the query is sent now."""
        flight.departed = True
        if self._boarding.get(flight.key) is flight:
            del self._boarding[flight.key]

    def leave(self, flight: Flight[Q], seat: object) -> Flight[Q] | None:
        """Take a caller out that waits no longer; without callers the flight is over.

        Returns:
            The flight to start now, if any.
        """
        flight.seats.discard(seat)
        return None if flight.seats else self.end(flight)

    def end(self, flight: Flight[Q]) -> Flight[Q] | None:
        """Take note that a flight is over; does nothing where it was already.

        Returns:
            The flight to start now, if any.
        """
        if flight.over:
            return None
        flight.over = True
        self.depart(flight)
        if self._running.get(flight.key) is not flight:
            return None
        follower = self._boarding.get(flight.key)
        if follower is None:
            del self._running[flight.key]
        else:
            self._running[flight.key] = follower
        return follower
