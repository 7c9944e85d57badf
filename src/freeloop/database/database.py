"""What an app does with its database: statements, transactions, shared reads, notifications."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self, TypeVar, cast, overload

import asyncpg

from freeloop.database.address import Address, ServerPort
from freeloop.database.connect import Connector
from freeloop.database.failure import translated
from freeloop.database.idle import IdlePlaces
from freeloop.database.listen import Listener, Notification
from freeloop.database.pool import Pool, StatementLoan
from freeloop.database.queries import Lent, Queries
from freeloop.database.reads import PrimaryReads, Reader, Writes
from freeloop.database.replicas import Replica, Replicas
from freeloop.database.shared import SharedReads
from freeloop.database.spans import Spans
from freeloop.database.statements import StatementTimes
from freeloop.database.transaction import Isolation, Transaction
from freeloop.errors import DatabaseUnavailable, StatementTimeout
from freeloop.scope import Lease

T = TypeVar("T")


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
        replicas: where streaming replicas listen; each host of each address is one, with a pool of ``size``.
        max_lag: seconds that a replica may be behind the primary, or may be for all that is known, and still
            answer; at least 3.
        name: the name in messages and metrics.

    Raises:
        ValueError: ``max_lag`` is no such number.

    Attributes:
        read: reads that a replica answers where one may, else the primary; see :class:`Reader`.
        replicas: what answers them, and how fresh it is.
        acquire_times: how long callers have waited for a connection, in vain or not.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int = 10,
        acquire_timeout: float = 2.0,
        statement_timeout: float | None = 30.0,
        server: ServerPort | None = None,
        replicas: Sequence[Address] = (),
        max_lag: float = 10.0,
        name: str = "main",
    ) -> None:
        self._address = address
        self._acquire_timeout = acquire_timeout
        self._statement_timeout = statement_timeout
        self._name = name
        self._connector = Connector(address, statement_timeout=statement_timeout, server=server, name=name)
        self._pool = Pool(self._connector, size=size, name=name)
        self._shared = SharedReads(self._reading, self._timed, name=name)
        self._times = StatementTimes()
        self._idle = IdlePlaces(name)
        self._spans = Spans(address)
        self.acquire_times = self._pool.acquire_times
        self._writes = Writes() if replicas else None
        hosts = [self._make_replica(host) for each in replicas for host in each.split()]
        self.replicas = Replicas(address.direct or address, hosts, name=name, max_lag=max_lag)
        self.read = self._make_reader()

    def _make_replica(self, address: Address) -> Replica:
        pool = Database(
            address,
            size=self._pool.size,
            # What it does not give in half of the time is waited for at the primary.
            acquire_timeout=self._acquire_timeout / 2,
            statement_timeout=self._statement_timeout,
            name=f"{self._name} at {address.place}",
        )
        # Of a statement or a line of code it does not matter which server it asks.
        pool._times, pool._idle = self._times, self._idle
        return Replica(pool, address)

    def _make_reader(self) -> Reader:
        places = asyncio.Semaphore(max(1, self._pool.size // 2))
        primary = PrimaryReads(self, places=None, patience=self._acquire_timeout)
        spare = PrimaryReads(self, places=places, patience=self._acquire_timeout / 2)
        return Reader(self.replicas, self._writes or Writes(), primary=primary, spare=spare)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - the caller's word
        """Connect once, so that a wrong address shows now; does nothing where it is open already.

        Args:
            timeout: seconds during which an unreachable server is tried again.

        Raises:
            DatabaseUnavailable: The server was not reached in time, or refused the login (which is not
                tried again).
        """
        try:
            await self._pool.open(timeout)
            await self.replicas.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close all connections, after at most 5 seconds for those that are lent; idempotent."""
        self._connector.stop()
        await self.replicas.close()
        await self._pool.close()

    def transaction(
        self,
        *,
        isolation: Isolation = "read_committed",
        readonly: bool = False,
        deferrable: bool = False,
    ) -> AbstractAsyncContextManager[Transaction]:
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
        return self._begin(
            self._acquire_timeout, isolation=isolation, readonly=readonly, deferrable=deferrable
        )

    @asynccontextmanager
    async def _begin(
        self, seconds: float, *, isolation: Isolation, readonly: bool, deferrable: bool = False
    ) -> AsyncIterator[Transaction]:
        """Open a transaction as :meth:`transaction`, waiting at most ``seconds`` for its connection."""
        began = False
        try:
            async with self._pool.lend(seconds) as (connection, lease):
                transaction = Transaction(
                    connection,
                    lease,
                    name=self._name,
                    statement_timeout=self._statement_timeout,
                    times=self._times,
                    idle=self._idle,
                    spans=self._spans,
                )
                began = not readonly
                async with transaction.begin(isolation=isolation, readonly=readonly, deferrable=deferrable):
                    yield transaction
        finally:
            if began:
                self.note_write()

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
        """Listen on channels, over a connection of its own; see :class:`Listener`.

        Raises:
            SettingsError: A pooler in transaction mode, which passes no notification on, stands in between.
        """
        return Listener(self._connector.past_pooler("notifications"), channels)

    async def check(self, *, timeout: float) -> None:  # noqa: ASYNC109 - the caller's word
        """Prove that a statement works.

        Args:
            timeout: seconds for borrowing and answer together.

        Raises:
            PoolTimeout: No connection came free in time.
            DatabaseUnavailable: The server cannot be reached, or did not answer in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self._pool.lend(min(timeout, self._acquire_timeout)) as (connection, _):
            try:
                with translated(connection, self._name, self._statement_timeout):
                    async with asyncio.timeout_at(deadline):
                        await connection.fetchval("SELECT 1")
            except StatementTimeout as error:
                connection.terminate()  # to give it back in order would take as long again
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
        return self._pool.longest_lease

    @property
    def holders(self) -> Mapping[Lease, str]:
        """What is lent, the longest first, with the route that it was lent to; empty outside of a scope."""
        return self._pool.holders

    @property
    def statement_times(self) -> StatementTimes:
        """How often each named statement was run, and how long that took."""
        return self._times

    @property
    def held_idle(self) -> IdlePlaces:
        """The lines of code that hold a connection while they wait for something else."""
        return self._idle

    @property
    def spans(self) -> Spans:
        """What makes spans of statements."""
        return self._spans

    @property
    def name(self) -> str:
        """The name in messages and metrics."""
        return self._name

    @property
    def statement_timeout(self) -> float | None:
        """Seconds that a statement may take; None: no limit."""
        return self._statement_timeout

    @property
    def load(self) -> int:
        """Connections that are lent, and callers that wait for one."""
        return self._pool.lent + self._pool.waiting

    @property
    def size(self) -> int:
        """The most connections that the pool holds."""
        return self._pool.size

    @property
    def in_use(self) -> int:
        """Connections that are lent."""
        return self._pool.in_use

    @property
    def idle(self) -> int:
        """Connections that are open and free."""
        return self._pool.idle

    @property
    def waiting(self) -> int:
        """Callers that wait for a connection."""
        return self._pool.waiting

    def separate(self, *, name: str, statement_timeout: float, size: int = 1) -> Database:
        """Return another pool of connections to the same server, not open yet, for a loop of its own."""
        return Database(
            self._address,
            size=size,
            acquire_timeout=statement_timeout,
            statement_timeout=statement_timeout,
            name=name,
        )

    def _lend_statement(self, seconds: float) -> AbstractAsyncContextManager[Lent]:
        """Lend a connection for one statement that only reads, waiting at most ``seconds`` for it."""
        return StatementLoan(self._pool, seconds, self._statement_timeout)

    def drop_connections(self) -> None:
        """End all connections without a word to the server, those that are lent too; others are made."""
        self._pool.drop_connections()

    def note_write(self) -> None:
        """Let the running scope's ``db.read`` see all that is committed now; after writes past this pool."""
        if self._writes is not None:
            self._writes.note()

    def _statement(self) -> AbstractAsyncContextManager[Lent]:
        # What SQL does cannot be told from its text: with replicas, all but what says it reads is a write.
        return self._reading() if self._writes is None else self._writing()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Lent]:
        began = False
        try:
            async with self._reading() as lent:
                began = True
                yield lent
        finally:
            # Also of one that failed, which may have taken effect; and not before its end is known.
            if began:
                self.note_write()

    def _reading(self) -> AbstractAsyncContextManager[Lent]:
        return self._lend_statement(self._acquire_timeout)
