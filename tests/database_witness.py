"""A database of its own for an app in another process, and who is connected to it."""

import asyncio
import itertools
import os

import asyncpg

_numbers = itertools.count(1)


class Witness:
    """Made empty but for one table; dropped at the end."""

    def __init__(self, server):
        self._server = server
        self.name = f"test_witness_{os.getpid()}_{next(_numbers)}"
        self.address = {
            name: getattr(server, name) for name in ("dsn", "host", "port", "user", "password")
        } | {"database": self.name}

    def __enter__(self):
        asyncio.run(self.ask(f"CREATE DATABASE {self.name}", database=self._server.database))
        asyncio.run(self.ask("CREATE TABLE witness (what text)"))
        return self

    def __exit__(self, *_):
        asyncio.run(self.ask(f"DROP DATABASE {self.name} WITH (FORCE)", database=self._server.database))

    async def ask(self, sql, database=None):
        connection = await asyncpg.connect(**{**self._server.arguments(), "database": database or self.name})
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    async def sessions(self):
        """Return state and statement of each session that is not our own."""
        sql = f"SELECT state, query FROM pg_stat_activity WHERE datname = '{self.name}'"  # noqa: S608 - our own
        return [tuple(row) for row in await self.ask(sql, database=self._server.database)]

    async def has_no_session(self):
        return await self.sessions() == []
