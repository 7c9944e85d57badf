"""The pool: a connection for one statement or one transaction, and never longer.

asyncpg's pool holds the connections. On top of it: waiting is bounded and says what it waited for,
errors are our own, and nothing is sent when a connection comes back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar, cast, overload

import asyncpg

from freeloop.database.address import Address, ServerPort
from freeloop.database.connect import Connector, prepare, retry_until_reached
from freeloop.database.failure import connect_failure, translated
from freeloop.database.listen import Listener, Notification
from freeloop.database.queries import Lent, Queries
from freeloop.database.shared import SharedReads
from freeloop.database.statements import StatementTimes
from freeloop.database.transaction import Isolation, Transaction
from freeloop.errors import DatabaseUnavailable, PoolTimeout, StatementTimeout
from freeloop.scope import Lease, borrow, current_scope, limit_wait, spend

_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
_Proxy: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
T = TypeVar("T")

_CLOSE_TIMEOUT: Final = 5.0
# A request to cancel that reaches the server between two statements is lost, and the statement it was meant
# for runs to its end. The connection is given up then, not waited for.
_RELEASE_TIMEOUT: Final = 2.0


class Database(Queries):
    """A pool of connections to one PostgreSQL database.

    A statement borrows a connection for itself only, a transaction for its block only. What a session
    remembers (``SET``, advisory locks of the session, ``LISTEN``, temporary tables) is NOT reset when
    a connection comes back, which saves a round trip on each use: use ``SET LOCAL``,
    ``pg_advisory_xact_lock`` and :meth:`listen` instead.

    Args:
        address: where PostgreSQL listens.
        size: the most connections to hold; they are made when they are needed.
        acquire_timeout: seconds to wait for a free connection.
        statement_timeout: seconds that a statement may take, None for no limit.
        server: who restarts a server that is down; None where that is not our business.
        name: the name in messages and metrics.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int = 10,
        acquire_timeout: float = 2.0,
        statement_timeout: float | None = 30.0,
        server: ServerPort | None = None,
        name: str = "main",
    ) -> None:
        self._address = address
        self._size = size
        self._acquire_timeout = acquire_timeout
        self._statement_timeout = statement_timeout
        self._name = name
        self._connector = Connector(address, statement_timeout=statement_timeout, server=server, name=name)
        self._pool: _Pool | None = None
        self._waiting = 0
        self._shared = SharedReads(self._statement, name=name)
        self._times = StatementTimes()
        self._holders: dict[Lease, str] = {}

    async def open(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - the caller's word
        """Connect once, so that a wrong address shows now; does nothing where it is open already.

        Args:
            timeout: seconds during which an unreachable server is tried again.

        Raises:
            DatabaseUnavailable: The server was not reached in time, or refused the login (which is not
                tried again).
        """
        if self._pool is None:
            self._pool = await retry_until_reached(self._open_pool, within=timeout, place=self._address.place)

    async def _open_pool(self) -> _Pool:
        return await asyncpg.create_pool(
            connect=cast("Any", self._connector.connect),
            init=prepare,
            reset=_leave_session,
            # No floor: asyncpg would restore it in the background, with a traceback in the log for
            # every attempt while the server is down. One connection proves the address.
            min_size=0,
            init_size=min(1, self._size),
            max_size=self._size,
        )

    async def close(self) -> None:
        """Close all connections, after at most 5 seconds for those that are lent; idempotent."""
        self._connector.stop()
        pool, self._pool = self._pool, None
        if pool is None:
            return
        # Where the time is over asyncpg's close is cancelled, and ends the connections itself.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await pool.close()

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: Isolation = "read_committed",
        readonly: bool = False,
        deferrable: bool = False,
    ) -> AsyncIterator[Transaction]:
        """Open a transaction: committed at the end of the block, rolled back where the block raises.

        Args:
            isolation: PostgreSQL's isolation level.
            readonly: whether writes are refused.
            deferrable: whether a serializable read-only transaction waits for a safe snapshot.

        Raises:
            PoolTimeout: No connection came free in time.
            DatabaseUnavailable: The server cannot be reached, or the connection broke.
            asyncpg.PostgresError: What PostgreSQL refuses at COMMIT, such as a deferred constraint.
        """
        async with self._lend(self._acquire_timeout) as connection:
            transaction = Transaction(
                connection, name=self._name, statement_timeout=self._statement_timeout, times=self._times
            )
            async with transaction.begin(isolation=isolation, readonly=readonly, deferrable=deferrable):
                yield transaction

    @overload
    async def shared(self, sql: str, *args: object, encode: None = None) -> list[asyncpg.Record]: ...
    @overload
    async def shared(self, sql: str, *args: object, encode: Callable[[list[asyncpg.Record]], T]) -> T: ...

    async def shared(
        self, sql: str, *args: object, encode: Callable[[list[asyncpg.Record]], T] | None = None
    ) -> T | list[asyncpg.Record]:
        """Return all rows; identical reads that wait at the same time are answered by one query.

        The query is sent after the last of them has asked, so each sees at least what was committed before
        it asked; nothing is kept for later. The same SQL, the same arguments in value and type, and the same
        ``encode`` make two reads identical. Arguments of a type whose values cannot be compared safely are
        allowed, and that read is shared with nobody. Only for statements that change nothing: of two
        identical ones only one may run.

        A caller waits for two queries at most: one that was sent before it asked, and its own. One that is
        cancelled leaves the others alone, and when the last has gone the query is cancelled on the server.

        Args:
            sql: the statement, with ``$1`` parameters.
            args: its arguments.
            encode: makes the answer out of the rows, once for all callers: bytes, str, a tuple, a frozen
                dataclass; None for the rows, in a list for each caller, whose values must not be changed.
                A function that captures something is identical to itself only, so make it once.

        Raises:
            StatementTimeout: As of every statement, and where the caller's deadline comes first.
            TypeError: ``encode`` returned a list or the like, which one caller could change for the others.
        """
        return cast("T | list[asyncpg.Record]", await self._shared.read(sql, args, encode))

    def listen(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[Notification]]:
        """Listen on channels, over a connection of its own; see :class:`Listener`."""
        return Listener(self._connector, channels)

    async def check(self, *, timeout: float) -> None:  # noqa: ASYNC109 - the caller's word
        """Prove that a statement works.

        Args:
            timeout: seconds for borrowing and answer together.

        Raises:
            PoolTimeout: No connection came free in time.
            DatabaseUnavailable: The server cannot be reached, or did not answer in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self._lend(min(timeout, self._acquire_timeout)) as connection:
            try:
                with translated(connection, self._name, self._statement_timeout):
                    async with asyncio.timeout_at(deadline):
                        await connection.fetchval("SELECT 1")
            except StatementTimeout as error:
                raise DatabaseUnavailable(f"'{self._name}' did not answer within {timeout} s") from error

    async def repeat(
        self,
        function: Callable[[Transaction], Awaitable[T]],
        *,
        attempts: int = 3,
        isolation: Isolation = "serializable",
    ) -> T:
        """Run a function in a transaction, and again where PostgreSQL asks for that.

        It does so where transactions collide: serialization failures and deadlocks. The function has to be
        safe to repeat: whatever it does beside its statements happens again.

        Args:
            function: Called with the transaction; its result is returned after COMMIT.
            attempts: How often at most; the last failure is raised.
            isolation: PostgreSQL's isolation level.

        Raises:
            asyncpg.SerializationError: It collided at each attempt; or DeadlockDetectedError.
        """
        if attempts < 1:
            raise ValueError(f"attempts is 1 or more, not {attempts}")
        for attempt in range(1, attempts + 1):
            try:
                async with self.transaction(isolation=isolation) as transaction:
                    return await function(transaction)
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                if attempt == attempts:
                    raise
                # Those that collided must not collide again in the same moment.
                await asyncio.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311 - chance, no secret
        raise AssertionError("the last attempt returns or raises")

    @property
    def longest_lease(self) -> float:
        """Seconds since the connection was lent that is out for longest; 0 where none is."""
        lease = next(iter(self._holders), None)  # in the order in which they were lent
        return 0.0 if lease is None else time.monotonic() - lease.since

    @property
    def statement_times(self) -> StatementTimes:
        """How often each named statement was run, and how long that took."""
        return self._times

    @property
    def size(self) -> int:
        """The most connections that the pool holds."""
        return self._size

    @property
    def in_use(self) -> int:
        """Connections that are lent."""
        return self._pool.get_size() - self._pool.get_idle_size() if self._pool else 0

    @property
    def idle(self) -> int:
        """Connections that are open and free."""
        return self._pool.get_idle_size() if self._pool else 0

    @property
    def waiting(self) -> int:
        """Callers that wait for a connection."""
        return self._waiting

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[Lent]:
        async with self._lend(self._acquire_timeout) as connection:
            limit = self._limit()
            with spend("sql"), translated(connection, self._name, limit):
                yield Lent(connection, limit)

    @asynccontextmanager
    async def _lend(self, seconds: float) -> AsyncIterator[_Connection]:
        """Lend a connection for the block, waiting for it at most ``seconds`` or until the deadline."""
        pool = self._pool
        if pool is None or pool.is_closing():
            raise DatabaseUnavailable(f"'{self._name}' is not open: it was closed, or open() was not awaited")
        with spend("connection"):
            connection = await self._acquire(pool, limit_wait(seconds))
        lease = borrow("connection", self._name)
        scope = current_scope()
        self._holders[lease] = scope.route if scope is not None else ""
        try:
            # The proxy has every method of a connection, by a metaclass that type checkers cannot follow.
            yield cast("_Connection", connection)
        finally:
            # asyncpg shields this from cancellation. A failure (the connection broke, the pool is
            # closed) has already ended the connection, and must not hide how the statement ended.
            try:
                with suppress(Exception):
                    await pool.release(connection, timeout=_RELEASE_TIMEOUT)
            finally:
                del self._holders[lease]
                lease.release()

    def _describe_longest(self) -> str:
        lease = next(iter(self._holders), None)
        if lease is None:
            return ""
        where = " at ".join(filter(None, (self._holders[lease], lease.place)))
        held = f"; longest held {time.monotonic() - lease.since:.3g} s"
        return f"{held} by {where}" if where else held

    async def _acquire(self, pool: _Pool, seconds: float) -> _Proxy:
        self._waiting += 1
        try:
            return await pool.acquire(timeout=seconds)
        except TimeoutError as error:
            # Where not one connection stands the wait was for the server and not for other callers.
            if pool.get_size() == 0:
                trouble = self._connector.trouble or connect_failure(error, self._address.place, self._name)
                raise DatabaseUnavailable(trouble.detail) from error
            raise PoolTimeout(
                f"no connection to '{self._name}' came free within {seconds:.3g} s "
                f"({self.in_use} of {self._size} lent{self._describe_longest()}). Raise "
                "FREELOOP_DATABASE_POOL_SIZE, or hold connections for less time: give them back before "
                "anything slow is awaited."
            ) from error
        except asyncpg.InterfaceError as error:
            if not pool.is_closing():
                raise
            raise DatabaseUnavailable(f"'{self._name}' is closing") from error
        finally:
            self._waiting -= 1


async def _leave_session(_: object) -> None:
    """Send nothing: asyncpg has rolled back an open transaction by then, and cleared its listeners."""
