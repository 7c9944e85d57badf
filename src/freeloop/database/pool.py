"""The pool: it lends a connection for one statement or one transaction, and never longer.

On top of :class:`~freeloop.database.sessions.Sessions`: who waits is told what for, who holds what is known,
and errors are our own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final

import asyncpg

from freeloop.database.connect import Connector, prepare, retry_until_reached
from freeloop.database.failure import connect_failure, find_failure
from freeloop.database.queries import Lent, limit_statement
from freeloop.database.session import Session
from freeloop.database.sessions import Sessions
from freeloop.errors import DatabaseUnavailable, PoolTimeout
from freeloop.metrics import Durations
from freeloop.scope import Lease, borrow, current_scope, limit_wait, spend

_CLOSE_TIMEOUT: Final = 5.0
_INSIDE: Final = 4  # calls between a lease and the app, at least: borrow and three methods of a loan
_ACQUIRE_BOUNDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds


class Pool:
    """The connections to one PostgreSQL database, and who holds them.

    Args:
        connector: makes them.
        size: the most to hold; they are made when they are needed.
        name: the name in messages.

    Attributes:
        acquire_times: how long callers have waited for a connection, in vain or not.
        waiting: callers that wait for one.
    """

    def __init__(self, connector: Connector, *, size: int, name: str) -> None:
        self.size = size
        self.name = name
        self.waiting = 0
        self.acquire_times = Durations(_ACQUIRE_BOUNDS)
        self._connector = connector
        self._sessions: Sessions | None = None
        self._holders: dict[Lease, str] = {}

    async def open(self, within: float) -> None:
        """Connect once, so that a wrong address shows now; does nothing where it is open already.

        Args:
            within: seconds during which an unreachable server is tried again.

        Raises:
            DatabaseUnavailable: The server was not reached in time, or refused the login (which is not
                tried again).
        """
        if self._sessions is None:
            place = self._connector.place
            self._sessions = await retry_until_reached(self._open, within=within, place=place)

    async def _open(self) -> Sessions:
        sessions = Sessions(self._connect, self.size)
        sessions.give_back(await sessions.acquire())
        return sessions

    async def _connect(self) -> Session:
        session = await self._connector.connect()
        try:
            await prepare(session)
        except BaseException as error:
            session.terminate()
            if isinstance(error, OSError | asyncpg.PostgresError | asyncpg.InterfaceError):
                raise connect_failure(error, self._connector.place, self.name) from error
            raise
        return session

    async def close(self) -> None:
        """Close all connections, after at most 5 seconds for those that are lent; idempotent."""
        sessions, self._sessions = self._sessions, None
        if sessions is not None:
            await sessions.close(_CLOSE_TIMEOUT, DatabaseUnavailable(f"'{self.name}' is closing"))

    def lend(self, seconds: float) -> Loan:
        """Lend a connection for a block, waiting for it at most ``seconds`` or until the deadline."""
        return Loan(self, seconds)

    @property
    def longest_lease(self) -> float:
        """Seconds since the connection was lent that is out for longest; 0 where none is."""
        lease = next(iter(self._holders), None)  # in the order in which they were lent
        return 0.0 if lease is None else time.monotonic() - lease.since

    @property
    def holders(self) -> Mapping[Lease, str]:
        """What is lent, the longest first, with the route that it was lent to; empty outside of a scope."""
        return self._holders

    @property
    def lent(self) -> int:
        """Connections that were lent and not given back."""
        return len(self._holders)

    @property
    def in_use(self) -> int:
        """Connections that are open and not free."""
        return self._sessions.open - self._sessions.free if self._sessions else 0

    @property
    def idle(self) -> int:
        """Connections that are open and free."""
        return self._sessions.free if self._sessions else 0

    def drop_connections(self) -> None:
        """End all connections without a word to the server, those that are lent too; others are made."""
        if self._sessions is not None:
            self._sessions.drop()

    def _describe_longest(self) -> str:
        lease = next(iter(self._holders), None)
        if lease is None:
            return ""
        where = " at ".join(filter(None, (self._holders[lease], lease.place)))
        held = f"; longest held {time.monotonic() - lease.since:.3g} s"
        return f"{held} by {where}" if where else held

    async def _acquire(self, sessions: Sessions, seconds: float) -> Session:
        self.waiting += 1
        began = time.monotonic()
        try:
            return await sessions.acquire(seconds)
        except TimeoutError as error:
            # Where not one connection stands the wait was for the server and not for other callers.
            if not sessions.open:
                trouble = self._connector.trouble or connect_failure(error, self._connector.place, self.name)
                raise DatabaseUnavailable(trouble.detail) from error
            raise PoolTimeout(
                f"no connection to '{self.name}' came free within {seconds:.3g} s "
                f"({self.in_use} of {self.size} lent{self._describe_longest()}). Raise "
                "FREELOOP_DATABASE_POOL_SIZE, or hold connections for less time: give them back before "
                "anything slow is awaited."
            ) from error
        finally:
            self.waiting -= 1
            self.acquire_times.add(time.monotonic() - began)


# Classes, and coroutines only where there is a wait, since every statement pays for them: a generator takes
# longer than all else here together.
class _Lending:
    """How a connection is lent, and given back."""

    __slots__ = ("_lease", "_lender", "_seconds", "_session", "_sessions")

    def __init__(self, lender: Pool, seconds: float) -> None:
        self._lender = lender
        self._seconds = seconds

    def _take(self) -> bool:
        """Take a connection that is free, and tell whether there was one."""
        lender = self._lender
        sessions = lender._sessions
        if sessions is None or sessions.is_closing:
            raise DatabaseUnavailable(
                f"'{lender.name}' is not open: it was closed, or open() was not awaited"
            )
        self._sessions = sessions
        session = sessions.take()
        if session is None:
            return False
        lender.acquire_times.add(0.0)
        self._note(session)
        return True

    async def _wait(self) -> None:
        """Wait for a connection."""
        with spend("connection"):
            session = await self._lender._acquire(self._sessions, limit_wait(self._seconds))
        self._note(session)

    def _note(self, session: Session) -> None:
        self._session = session
        scope = current_scope()
        lease = self._lease = borrow("connection", self._lender.name, _INSIDE)
        self._lender._holders[lease] = "" if scope is None else scope.route

    async def _end(self, error: BaseException) -> None:
        """Give the connection back after the block has raised."""
        session = self._session
        session.mark_unsettled()
        if isinstance(error, DatabaseUnavailable) and session.is_closed():
            # Where packets get lost, those that are free look well until they are used, and each would cost
            # one borrower all of its time. Where only this one was broken, that costs a few logins.
            self._sessions.drop_free()
        if not self._give_back():
            await self._settle()

    def _give_back(self) -> bool:
        """Give the connection back, and tell whether nothing is left open on it; else it must be settled."""
        session = self._session
        if not session.is_settled:
            return False
        self._sessions.give_back(session)
        self._forget()
        return True

    async def _settle(self) -> None:
        try:
            await self._sessions.settle(self._session)
        finally:
            self._forget()

    def _forget(self) -> None:
        del self._lender._holders[self._lease]
        self._lease.release()


class Loan(_Lending):
    """A connection for a block; see :meth:`Pool.lend`."""

    __slots__ = ()

    async def __aenter__(self) -> tuple[Session, Lease]:
        if not self._take():
            await self._wait()
        return self._session, self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            await self._end(error)
        elif not self._give_back():
            await self._settle()


class StatementLoan(_Lending):
    """A connection for one statement, whose errors become ours.

    Args:
        pool: whose connection.
        seconds: to wait for it at most.
        limit: seconds that a statement may take as it is configured; the deadline may be sooner.
    """

    __slots__ = ("_limit", "_spending")

    def __init__(self, pool: Pool, seconds: float, limit: float | None) -> None:
        self._lender = pool
        self._seconds = seconds
        self._limit = limit

    async def __aenter__(self) -> Lent:
        if not self._take():
            await self._wait()
        self._limit = limit_statement(self._limit)
        self._spending = spend("sql")
        self._spending.__enter__()
        return self._session, self._limit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spending.__exit__()
        if error is None:
            if not self._give_back():
                await self._settle()
            return
        ours = None
        try:
            ours = await find_failure(error, self._session, self._lender.name, self._limit)
        finally:
            await self._end(ours or error)
        if ours is not None:
            try:
                raise ours from error
            finally:
                del ours, error  # each refers to this frame: a ring, for the garbage collector
