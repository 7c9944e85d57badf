"""Transactions: a block that commits at its end, and savepoints inside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, Literal, TypeAlias

import anyio
import asyncpg

from freeloop.database.failure import translated
from freeloop.database.queries import Queries
from freeloop.scope import spend

Isolation: TypeAlias = Literal["read_uncommitted", "read_committed", "repeatable_read", "serializable"]

_ROLLBACK_TIMEOUT: Final = 5.0


class Transaction(Queries):
    """Statements of one transaction, on one connection; of no use after its block.

    Args:
        connection: the connection that the transaction runs on.
        name: the name of the database object, for messages.
        statement_timeout: seconds a statement may take, None for no limit; for messages.
    """

    def __init__(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        *,
        name: str,
        statement_timeout: float | None,
    ) -> None:
        self._connection = connection
        self._name = name
        self._statement_timeout = statement_timeout
        self._over = False
        # A statement failed, and the server has aborted the transaction unless the failure was here.
        self._doubtful = False
        self._readonly = False

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        if self._over:
            raise RuntimeError(f"this transaction on '{self._name}' is over: use it within its block only")
        with spend("sql"), translated(self._connection, self._name, self._statement_timeout):
            try:
                yield self._connection
            except BaseException:
                self._doubtful = True
                raise

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
            try:
                async with self._statement():
                    await block.start()
            except BaseException:
                # Whether the server has begun is not known, and asyncpg would take it for a mistake in
                # the code, which it reports to the loop, when the connection comes back.
                self._give_up()
                raise
            async with self._finish(block):
                yield self
        finally:
            self._over = True

    @asynccontextmanager
    async def _run(self, block: asyncpg.transaction.Transaction) -> AsyncIterator[Transaction]:
        async with self._statement():
            await block.start()
        async with self._finish(block):
            yield self

    @asynccontextmanager
    async def _finish(self, block: asyncpg.transaction.Transaction) -> AsyncIterator[None]:
        try:
            yield
            if self._doubtful and not self._readonly:  # which has nothing to lose
                await self._prove()
        except BaseException:
            rolled_back = False
            # Shielded, since in a cancelled anyio scope every await is cancelled anew. The block's
            # own error is the one to report.
            with anyio.move_on_after(_ROLLBACK_TIMEOUT, shield=True), suppress(Exception):
                await block.rollback()
                rolled_back = True
            if rolled_back:
                self._doubtful = False
            else:
                self._give_up()
            raise
        async with self._statement():
            await block.commit()

    async def _prove(self) -> None:
        """Raise where the transaction is aborted: a COMMIT would roll it back, and report success."""
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
