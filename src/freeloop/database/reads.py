"""``db.read``: reads that a replica answers where one may, and else the primary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, overload

import asyncpg

from freeloop.database.freshness import NEVER
from freeloop.database.queries import Lent, Queries
from freeloop.database.replicas import Replica, Replicas
from freeloop.database.shared import SharedReads
from freeloop.database.transaction import Transaction
from freeloop.errors import DatabaseUnavailable, PoolTimeout
from freeloop.scope import current_scope, limit_wait

if TYPE_CHECKING:
    from freeloop.database.database import Database

T = TypeVar("T")
ReadIsolation: TypeAlias = Literal["read_committed", "repeatable_read"]
"""Levels that a standby knows."""

# What the primary can still answer. By the latter two a standby ends a statement that holds up its replay.
_NOT_ANSWERED: Final = (
    DatabaseUnavailable,
    PoolTimeout,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)


class Writes:
    """Remembers when each scope has written last, and what was written outside of any."""

    def __init__(self) -> None:
        self._outside = NEVER

    def note(self) -> None:
        """Note that a write has ended now. One outside of any scope, as at the start, is everybody's."""
        scope = current_scope()
        if scope is None:
            self._outside = time.monotonic()
        else:
            scope.wrote = time.monotonic()

    def latest(self) -> float:
        """Return when the latest write ended that the running code must see; minus infinity: none."""
        scope = current_scope()
        return self._outside if scope is None else max(self._outside, scope.wrote)


class PrimaryReads(Queries):
    """The reads of ``db.read`` that the primary answers; to the scope they count as no writes.

    Args:
        database: the primary.
        places: how many of its connections these may take; None: all.
        patience: seconds to wait for a place and for a connection together.
    """

    def __init__(
        self,
        database: Database,
        *,
        places: asyncio.Semaphore | None,
        patience: float,
    ) -> None:
        self._database = database
        self._places = places
        self._patience = patience
        self._statement_timeout = database.statement_timeout
        self._times = database.statement_times
        self._spans = database.spans
        self._shared = SharedReads(self._statement, self._timed, name=database.name)

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[Lent]:
        async with self._place() as seconds, self._database._lend_statement(seconds) as lent:
            yield lent

    async def shared(self, sql: str, *args: object, encode: Any = None) -> Any:  # noqa: ANN401 - the rows
        """Return all rows; see :meth:`Database.shared`."""
        return await self._shared.read(sql, args, encode)

    @asynccontextmanager
    async def transaction(self, *, isolation: ReadIsolation, readonly: bool) -> AsyncIterator[Transaction]:
        """Open a transaction; see :meth:`Database.transaction`."""
        async with (
            self._place() as seconds,
            self._database._begin(seconds, isolation=isolation, readonly=readonly) as transaction,
        ):
            yield transaction

    def _place(self) -> AbstractAsyncContextManager[float]:
        return nullcontext(self._patience) if self._places is None else self._take(self._places)

    @asynccontextmanager
    async def _take(self, places: asyncio.Semaphore) -> AsyncIterator[float]:
        """Take a place, and give the seconds that remain for a connection."""
        until = time.monotonic() + self._patience
        seconds = limit_wait(self._patience)
        try:
            async with asyncio.timeout(seconds):
                await places.acquire()
        except TimeoutError as error:
            raise PoolTimeout(
                f"no replica of '{self._database.name}' answers, and no connection of those that the primary "
                f"has for its replicas' reads (half of {self._database.size}) came free within {seconds:.3g} "
                "s. Bring a replica back, or raise FREELOOP_DATABASE_POOL_SIZE."
            ) from error
        try:
            yield max(0.0, until - time.monotonic())
        finally:
            places.release()


class Reader:
    """Reads that a replica answers where one may, and else the primary; for statements that change nothing.

    A replica may answer unless it is out of reach, too far behind, or does not have what the reader's
    own scope has written before. What it fails to answer is asked again of the primary, a statement that ran
    too long excepted. Where no replica may answer, such reads take half of the primary's connections at most.
    The wait for a connection is half of the acquire timeout at a replica, and half of it then at the primary.

    The methods are those of :class:`freeloop.database.Database`. A replica refuses what changes something
    (``asyncpg.ReadOnlySQLTransactionError``); the primary does not.

    Attributes:
        counts: How many reads went which way: ``replica``; ``wrote``, to the primary, since the scope has
            written; ``behind``, to the primary, since no replica is there or fresh enough; ``failed``, to the
            primary, after a replica has not answered. Without replicas all stay 0.
    """

    def __init__(
        self, replicas: Replicas, writes: Writes, *, primary: PrimaryReads, spare: PrimaryReads
    ) -> None:
        self._replicas = replicas
        self._writes = writes
        self._primary = primary
        self._spare = spare
        self.counts = {"replica": 0, "wrote": 0, "behind": 0, "failed": 0}

    @overload
    async def fetch(self, sql: str, *args: object, into: None = None) -> list[asyncpg.Record]: ...
    @overload
    async def fetch(self, sql: str, *args: object, into: type[T]) -> list[T]: ...

    async def fetch(self, sql: str, *args: object, into: Any = None) -> Any:
        """Return all rows; see :meth:`Queries.fetch`."""
        return await self._ask(lambda side: side.fetch(sql, *args, into=into))

    @overload
    async def fetch_row(self, sql: str, *args: object, into: None = None) -> asyncpg.Record | None: ...
    @overload
    async def fetch_row(self, sql: str, *args: object, into: type[T]) -> T | None: ...

    async def fetch_row(self, sql: str, *args: object, into: Any = None) -> Any:
        """Return the first row, or None; see :meth:`Queries.fetch_row`."""
        return await self._ask(lambda side: side.fetch_row(sql, *args, into=into))

    async def fetch_value(self, sql: str, *args: object) -> Any:  # noqa: ANN401 - the SQL decides the type
        """Return the first column of the first row, or None where there is no row."""
        return await self._ask(lambda side: side.fetch_value(sql, *args))

    async def fetch_json(self, sql: str, *args: object) -> bytes:
        """Return all rows as one JSON array; see :meth:`Queries.fetch_json`."""
        return await self._ask(lambda side: side.fetch_json(sql, *args))

    @overload
    async def shared(self, sql: str, *args: object, encode: None = None) -> list[asyncpg.Record]: ...
    @overload
    async def shared(self, sql: str, *args: object, encode: Callable[[list[asyncpg.Record]], T]) -> T: ...

    async def shared(self, sql: str, *args: object, encode: Any = None) -> Any:
        """Return all rows, by one query for all who ask at the same time; see :meth:`Database.shared`.

        Who has written shares with others on the primary, who has not on a replica.
        """
        return await self._ask(lambda side: side.shared(sql, *args, encode=encode))

    @asynccontextmanager
    async def transaction(self, *, isolation: ReadIsolation = "read_committed") -> AsyncIterator[Transaction]:
        """Open a read-only transaction, for several reads of one state (``repeatable_read``) and for streams.

        It is on one server to its end: what the server fails to answer within it is not asked elsewhere.

        Raises:
            DatabaseUnavailable: As :meth:`Database.transaction`; and where a replica is lost in the block.
        """

        async def begin(side: Database | PrimaryReads) -> Transaction:
            return await stack.enter_async_context(side.transaction(isolation=isolation, readonly=True))

        async with AsyncExitStack() as stack:
            yield await self._ask(begin)

    async def _ask(self, question: Callable[[Database | PrimaryReads], Awaitable[T]]) -> T:
        if not self._replicas.all:
            return await question(self._primary)
        chosen = self._replicas.choose(self._writes.latest())
        if not isinstance(chosen, Replica):
            self.counts[chosen] += 1
            return await question(self._primary if chosen == "wrote" else self._spare)
        try:
            answer = await question(chosen.database)
        except _NOT_ANSWERED as error:
            if isinstance(error, DatabaseUnavailable):
                # Until the next look: not everybody has to find out for themselves.
                chosen.take_out(error.detail)
        else:
            self.counts["replica"] += 1
            return answer
        self.counts["failed"] += 1
        return await question(self._spare)
