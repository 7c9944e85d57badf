"""The statements that a database and a transaction have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg


class Queries(ABC):
    """Statements with ``$1`` parameters, as asyncpg takes them.

    Every method raises:
        StatementTimeout: The statement took longer than the statement timeout; it was cancelled on
            the server.
        DatabaseUnavailable: The server cannot be reached, or the connection broke.
        PoolTimeout: No connection came free in time (only outside a transaction).
        asyncpg.PostgresError: Everything else that PostgreSQL refuses, unchanged.

    ``json`` and ``jsonb`` values are read and written as Python values.
    """

    @abstractmethod
    def _statement(self) -> AbstractAsyncContextManager[asyncpg.Connection[asyncpg.Record]]:
        """Give the connection for one statement; only calls of asyncpg belong in the block."""

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """Return all rows."""
        async with self._statement() as connection:
            return await connection.fetch(sql, *args)

    async def fetch_row(self, sql: str, *args: object) -> asyncpg.Record | None:
        """Return the first row, or None where there is none."""
        async with self._statement() as connection:
            return await connection.fetchrow(sql, *args)

    async def fetch_value(self, sql: str, *args: object) -> Any:  # noqa: ANN401 - the SQL decides the type
        """Return the first column of the first row, or None where there is no row."""
        async with self._statement() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        """Run a statement and return its status tag, such as ``UPDATE 3``."""
        async with self._statement() as connection:
            return await connection.execute(sql, *args)

    async def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of arguments, all or none of them."""
        async with self._statement() as connection:
            await connection.executemany(sql, rows)
