"""The statements that a database and a transaction have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any, TypeAlias, TypeVar, overload

import asyncpg

from freeloop.database.rows import shape_of
from freeloop.database.spans import Spans
from freeloop.database.statements import Statement, StatementTimes
from freeloop.scope import limit_wait

T = TypeVar("T")
Lent: TypeAlias = "tuple[asyncpg.Connection[asyncpg.Record], float | None]"
"""A connection for one statement, and the seconds that this may take; None: no limit."""

_SHORTEST = 0.001  # seconds; asyncpg takes 0 for a mistake


class Queries(ABC):
    """Statements with ``$1`` parameters, as asyncpg takes them; SQL is never made out of values.

    Every method raises:
        StatementTimeout: The statement took longer than the statement timeout, or than what remained until
            the deadline of the scope; it was cancelled on the server.
        DatabaseUnavailable: The server cannot be reached, or the connection broke.
        PoolTimeout: No connection came free in time (only outside a transaction).
        asyncpg.PostgresError: Everything else that PostgreSQL refuses, unchanged.

    ``json`` and ``jsonb`` values are read and written as Python values. A :class:`Statement` in place of a
    string has a name, by which its time is counted.
    """

    _statement_timeout: float | None
    _times: StatementTimes
    _spans: Spans

    @abstractmethod
    def _statement(self) -> AbstractAsyncContextManager[Lent]:
        """Give the connection for one statement; only calls of asyncpg belong in the block."""

    @overload
    async def fetch(self, sql: str, *args: object, into: None = None) -> list[asyncpg.Record]: ...
    @overload
    async def fetch(self, sql: str, *args: object, into: type[T]) -> list[T]: ...

    async def fetch(
        self, sql: str, *args: object, into: type[T] | None = None
    ) -> list[T] | list[asyncpg.Record]:
        """Return all rows.

        Args:
            sql: The statement.
            args: Its arguments.
            into: A Pydantic model, a dataclass or a NamedTuple to make of each row, by its columns' names.
        """
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                rows = await connection.fetch(str(sql), *args, timeout=limit)
        return rows if into is None else list(map(shape_of(into), rows))

    @overload
    async def fetch_row(self, sql: str, *args: object, into: None = None) -> asyncpg.Record | None: ...
    @overload
    async def fetch_row(self, sql: str, *args: object, into: type[T]) -> T | None: ...

    async def fetch_row(
        self, sql: str, *args: object, into: type[T] | None = None
    ) -> T | asyncpg.Record | None:
        """Return the first row, or None where there is none; ``into`` as of :meth:`fetch`."""
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                row = await connection.fetchrow(str(sql), *args, timeout=limit)
        return row if into is None or row is None else shape_of(into)(row)

    async def fetch_value(self, sql: str, *args: object) -> Any:  # noqa: ANN401 - the SQL decides the type
        """Return the first column of the first row, or None where there is no row."""
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                return await connection.fetchval(str(sql), *args, timeout=limit)

    async def fetch_json(self, sql: str, *args: object) -> bytes:
        """Return all rows as one JSON array of objects, rendered by PostgreSQL and passed on as bytes.

        Numbers keep their digits, times are in UTC with an offset, NULL is ``null``; no row passes through
        Python. For answers whose shape the query decides.
        """
        wrapped = f"select convert_to(coalesce(json_agg(row), '[]')::text, 'UTF8') from (\n{sql}\n) as row"  # noqa: S608 - it is the caller's own statement; values stay parameters
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                content: bytes = await connection.fetchval(wrapped, *args, timeout=limit)
        return content

    async def execute(self, sql: str, *args: object) -> str:
        """Run a statement and return its status tag, such as ``UPDATE 3``."""
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                return await connection.execute(str(sql), *args, timeout=limit)

    async def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of arguments, all or none of them."""
        async with self._statement() as (connection, limit):
            with self._timed(sql):
                await connection.executemany(str(sql), rows, timeout=limit)

    async def copy_in(
        self,
        table: str,
        rows: Iterable[Sequence[object]] | AsyncIterable[Sequence[object]],
        *,
        columns: Sequence[str],
        schema: str | None = None,
    ) -> int:
        """Write rows by PostgreSQL's COPY, all or none of them; return how many.

        Args:
            table: The table's name, taken literally.
            rows: Rows in the order of ``columns``. They may come asynchronously; the connection is held
                meanwhile.
            columns: The columns' names.
            schema: The schema's name; None: as the search path says.
        """
        async with self._statement() as (connection, limit):
            with self._spans.operation("COPY", f"{schema}.{table}" if schema else table):
                tag = await connection.copy_records_to_table(
                    table, records=rows, columns=list(columns), schema_name=schema, timeout=limit
                )
        return int(tag.split()[-1])

    def _timed(self, sql: str) -> AbstractContextManager[object]:
        # No generator where there is nothing to count: every statement would pay for it.
        return self._counted(sql) if isinstance(sql, Statement) else self._spans.statement(sql)

    @contextmanager
    def _counted(self, sql: Statement) -> Iterator[None]:
        with self._spans.statement(sql):
            began = time.monotonic()
            try:
                yield
            finally:
                self._times.add(sql.name, time.monotonic() - began)


def limit_statement(timeout: float | None) -> float | None:
    """Return the seconds that a statement may take now: ``timeout``, or what remains until the deadline."""
    limit = limit_wait(timeout)
    return None if limit is None else max(_SHORTEST, limit)
