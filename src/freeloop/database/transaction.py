"""Transactions: a block that commits at its end, and savepoints inside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, TypeVar, overload

import anyio
import asyncpg

from freeloop.database.failure import find_failure
from freeloop.database.idle import IdlePlaces
from freeloop.database.queries import Lent, Queries, limit_statement
from freeloop.database.rows import shape_of
from freeloop.database.spans import Spans
from freeloop.database.statements import StatementTimes
from freeloop.scope import Lease, spend

Isolation: TypeAlias = Literal["read_uncommitted", "read_committed", "repeatable_read", "serializable"]

T = TypeVar("T")

_ROLLBACK_TIMEOUT: Final = 5.0


class Transaction(Queries):
    """Statements of one transaction, on one connection; of no use after its block.

    Args:
        connection: the connection that the transaction runs on.
        lease: what says in the scope that it is lent.
        name: the name of the database object, for messages.
        statement_timeout: seconds a statement may take, None for no limit.
        times: counts the named statements.
        idle: takes note of the time in which the connection is held and not used.
        spans: makes the spans.
    """

    def __init__(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        lease: Lease,
        *,
        name: str,
        statement_timeout: float | None,
        times: StatementTimes,
        idle: IdlePlaces,
        spans: Spans,
    ) -> None:
        self._connection = connection
        self._lease = lease
        self._name = name
        self._statement_timeout = statement_timeout
        self._times = times
        self._idle = idle
        self._spans = spans
        self._over = False
        # A statement failed, and the server has aborted the transaction unless the failure was here.
        self._doubtful = False
        self._readonly = False
        self._sequels: list[Callable[[], object]] = []

    def after_commit(self, function: Callable[[], object]) -> None:
        """Call a function once, as soon as the transaction has been committed; not where it is rolled back.

        It must not fail. What a savepoint's block has asked for is called also where that was undone.
        """
        if function not in self._sequels:
            self._sequels.append(function)

    def _statement(self) -> _Statement:
        return _Statement(self)

    @overload
    def stream(
        self, sql: str, *args: object, into: None = None, prefetch: int = 100
    ) -> AsyncIterator[asyncpg.Record]: ...
    @overload
    def stream(self, sql: str, *args: object, into: type[T], prefetch: int = 100) -> AsyncIterator[T]: ...

    async def stream(
        self, sql: str, *args: object, into: type[T] | None = None, prefetch: int = 100
    ) -> AsyncIterator[Any]:
        """Yield the rows one after the other, by a cursor on the server that fetches ``prefetch`` at a time.

        Whatever the number of rows, few are in memory. The transaction holds its connection until its block
        ends: for a client that reads slowly, read pages instead (``where id > $1 order by id limit 100``).

        Args:
            sql: The statement.
            args: Its arguments.
            into: As of :meth:`fetch`.
            prefetch: Rows of one round trip.
        """
        shape = None if into is None else shape_of(into)
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                # connection.cursor() would give the statement a name, which outlives the transaction.
                statement = await connection.prepare(str(sql), timeout=limit)
                cursor = await statement.cursor(*args, timeout=limit)
        while True:
            async with self._statement() as (_, limit):
                with self._spans.operation("FETCH"):
                    rows = await cursor.fetch(prefetch, timeout=limit)
            for row in rows:
                yield row if shape is None else shape(row)
            if len(rows) < prefetch:
                return

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a savepoint: an error in the block undoes the block, and the outer one can go on."""
        return self._run(self._connection.transaction())

    @asynccontextmanager
    async def begin(
        self, *, isolation: Isolation, readonly: bool, deferrable: bool
    ) -> AsyncIterator[Transaction]:
        """Run the transaction itself; the database calls it, once.

        Raises:
            asyncpg.PostgresError: What a deferred constraint refuses at COMMIT, out of the block; and
                InFailedSQLTransactionError where the block has caught the error of a statement.
        """
        self._readonly = readonly
        block = self._connection.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        try:
            with self._spans.transaction():
                await self._begin(block)
                try:
                    yield self
                    await self._prove()
                except BaseException:
                    await self._undo(block)
                    raise
                await self._keep(block, "COMMIT")
            for function in self._sequels:
                function()
        finally:
            self._over = True
            self._idle.settle(self._lease)

    async def _begin(self, block: asyncpg.transaction.Transaction) -> None:
        try:
            await self._start(block, "BEGIN")
        except BaseException:
            # Whether the server has begun is not known, and asyncpg would take it for a mistake in
            # the code, which it reports to the loop, when the connection comes back.
            self._give_up()
            raise

    @asynccontextmanager
    async def _run(self, block: asyncpg.transaction.Transaction) -> AsyncIterator[Transaction]:
        await self._start(block, "SAVEPOINT")
        try:
            yield self
            await self._prove()
        except BaseException:
            await self._undo(block)
            raise
        await self._keep(block, "RELEASE SAVEPOINT")

    async def _start(self, block: asyncpg.transaction.Transaction, operation: str) -> None:
        async with self._statement():
            with self._spans.operation(operation):
                await block.start()

    async def _keep(self, block: asyncpg.transaction.Transaction, operation: str) -> None:
        async with self._statement():
            with self._spans.operation(operation):
                await block.commit()

    async def _undo(self, block: asyncpg.transaction.Transaction) -> None:
        """Roll back; the block's own error is the one to report."""
        self._idle.settle(self._lease)
        rolled_back = False
        # Shielded, since in a cancelled anyio scope every await is cancelled anew.
        with anyio.move_on_after(_ROLLBACK_TIMEOUT, shield=True), suppress(Exception):
            await block.rollback()
            rolled_back = True
        if rolled_back:
            self._doubtful = False
        else:
            self._give_up()

    async def _prove(self) -> None:
        """Raise where the transaction is aborted: a COMMIT would roll it back, and report success."""
        if not self._doubtful or self._readonly:  # which has nothing to lose
            return
        try:
            async with self._statement():
                await self._connection.execute("SELECT 1")
        except asyncpg.InFailedSQLTransactionError as error:
            error.add_note(
                "The block caught the error of a statement, which had aborted the transaction: nothing of it "
                "was kept. Put what may fail into a transaction() of its own inside the block."
            )
            raise
        self._doubtful = False

    def _give_up(self) -> None:
        """End a connection whose state is not known; the pool makes another."""
        with suppress(asyncpg.InterfaceError):  # it broke, and the pool has taken it back
            self._connection.terminate()


# A class, as every statement pays for it: a generator takes several times as long.
class _Statement:
    """A transaction's connection for one statement, whose errors become ours."""

    __slots__ = ("_limit", "_spending", "_transaction")

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def __aenter__(self) -> Lent:
        transaction = self._transaction
        if transaction._over:
            raise RuntimeError(
                f"this transaction on '{transaction._name}' is over: use it within its block only"
            )
        transaction._idle.settle(transaction._lease)
        self._limit = limit_statement(transaction._statement_timeout)
        self._spending = spend("sql")
        self._spending.__enter__()
        return transaction._connection, self._limit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transaction = self._transaction
        transaction._lease.rest()
        self._spending.__exit__()
        if error is not None:
            transaction._doubtful = True
            ours = await find_failure(error, transaction._connection, transaction._name, self._limit)
            if ours is not None:
                try:
                    raise ours from error
                finally:
                    del ours, error  # each refers to this frame: a ring, for the garbage collector
