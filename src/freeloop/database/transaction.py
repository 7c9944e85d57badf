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

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        if self._over:
            raise RuntimeError(f"this transaction on '{self._name}' is over: use it within its block only")
        with spend("sql"), translated(self._connection, self._name, self._statement_timeout):
            yield self._connection

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a savepoint: an error in the block undoes the block, and the outer one can go on."""
        return self._run(self._connection.transaction())

    @asynccontextmanager
    async def begin(
        self, *, isolation: Isolation, readonly: bool, deferrable: bool
    ) -> AsyncIterator[Transaction]:
        """Run the transaction itself; the database calls it, once.

        Raises:
            asyncpg.PostgresError: What a deferred constraint refuses at COMMIT, out of the block.
        """
        block = self._connection.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        try:
            async with self._run(block):
                yield self
        finally:
            self._over = True

    @asynccontextmanager
    async def _run(self, block: asyncpg.transaction.Transaction) -> AsyncIterator[Transaction]:
        async with self._statement():
            await block.start()
        try:
            yield self
        except BaseException:
            # Shielded, since in a cancelled anyio scope every await is cancelled anew. The block's
            # own error is the one to report: where the rollback fails the connection is broken, and
            # its release to the pool ends it.
            with anyio.move_on_after(_ROLLBACK_TIMEOUT, shield=True), suppress(Exception):
                await block.rollback()
            raise
        async with self._statement():
            await block.commit()
