"""Make connections: one attempt, with one revival of the server where somebody keeps it for us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import asyncpg
import orjson

from freeloop.database.address import Address, ServerPort
from freeloop.database.failure import connect_failure, is_final
from freeloop.errors import DatabaseUnavailable, FreeloopError

CONNECT_TIMEOUT: Final = 5.0
_RECOVERY: Final = 1.0
_REVIVAL_PAUSE: Final = 1.0
_SLOW: Final = 1.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_JSONB_VERSION: Final = b"\x01"

_T = TypeVar("_T")


class Connector:
    """Makes the connections of one database.

    Args:
        address: where PostgreSQL listens.
        statement_timeout: seconds a statement may take, None for no limit.
        server: who restarts a server that is down; None where that is not our business.
        name: the name of the database object, for messages.
    """

    def __init__(
        self,
        address: Address,
        *,
        statement_timeout: float | None = None,
        server: ServerPort | None = None,
        name: str = "main",
    ) -> None:
        self._address = address
        self._statement_timeout = statement_timeout
        self._server = server
        self._name = name
        self._revival: asyncio.Task[None] | None = None
        self._next_revival = 0.0
        self.trouble: DatabaseUnavailable | None = None
        """Why the latest attempt has not succeeded (yet); None where it has."""

    async def connect(
        self,
        _dsn: str | None = None,
        **arguments: Any,  # noqa: ANN401 - passed through to asyncpg.connect
    ) -> asyncpg.Connection[asyncpg.Record]:
        """Connect, in at most 5 s an attempt and twice at most: again only after the server was brought back.

        Args:
            **arguments: further arguments of ``asyncpg.connect``; its pool passes its own.

        Raises:
            DatabaseUnavailable: No connection; ``is_final`` tells whether trying again can help.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            try:
                connection = await self._attempt(arguments)
            except (OSError, asyncpg.CannotConnectNowError) as error:
                # A server that took the connection and says nothing is not helped by another start.
                if self._server is None or isinstance(error, TimeoutError):
                    raise
                # Set before the wait: who gives up meanwhile shall hear what the trouble is.
                self.trouble = connect_failure(error, self._address.place, self._name)
                await self._revive(self._server)
                connection = await self._attempt(arguments)
        except DatabaseUnavailable as failure:
            self.trouble = failure
            raise
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self.trouble = connect_failure(error, self._address.place, self._name)
            raise self.trouble from error
        except asyncio.CancelledError:
            if self.trouble is None and loop.time() - started > _SLOW:
                self.trouble = connect_failure(TimeoutError(), self._address.place, self._name)
            raise
        self.trouble = None
        return connection

    async def _attempt(self, arguments: dict[str, Any]) -> asyncpg.Connection[asyncpg.Record]:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            **self._address.arguments(),
            timeout=CONNECT_TIMEOUT,
            command_timeout=self._statement_timeout,
            server_settings={"application_name": "freeloop", "timezone": "UTC"},
            **arguments,
        )
        return connection

    def stop(self) -> None:
        """Stop bringing the server back; who still waits for it gets DatabaseUnavailable."""
        if self._revival is not None:
            self._revival.cancel()

    async def _revive(self, server: ServerPort) -> None:
        """Let the server be brought back, once for all that wait for it."""
        loop = asyncio.get_running_loop()
        if self._revival is None or self._revival.done():
            if self.trouble and loop.time() < self._next_revival:
                # A whole queue of callers finds the server down, one after the other: those of one
                # second share one failure, and none of them waits.
                raise DatabaseUnavailable(self.trouble.detail)
            self._revival = loop.create_task(self._ensure(server))
            # Retrieve the exception, so that a revival nobody waited for is not reported as lost.
            self._revival.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shielded: the caller that started it may be cancelled while the others still wait.
        await asyncio.shield(self._revival)

    async def _ensure(self, server: ServerPort) -> None:
        try:
            await server.ensure()
            # What keeps the server may say that all is well while PostgreSQL still recovers.
            await retry_until_reached(self._probe, within=_RECOVERY, place=self._address.place)
        except asyncio.CancelledError:
            # It ends this task only: who waits for the task must not take it for their own.
            raise DatabaseUnavailable(f"'{self._name}' is closing") from None
        except (FreeloopError, OSError) as error:
            self._next_revival = asyncio.get_running_loop().time() + _REVIVAL_PAUSE
            raise DatabaseUnavailable(
                f"PostgreSQL of '{self._name}' is down and did not come back: {error}"
            ) from error

    async def _probe(self) -> None:
        try:
            connection = await self._attempt({})
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise connect_failure(error, self._address.place, self._name) from error
        connection.terminate()


async def retry_until_reached(attempt: Callable[[], Awaitable[_T]], *, within: float, place: str) -> _T:
    """Repeat an attempt while the server cannot be reached.

    Args:
        attempt: raises DatabaseUnavailable where the server cannot be reached.
        within: seconds for all attempts together.
        place: where the server is looked for.

    Raises:
        DatabaseUnavailable: Not reached in time, or refused in a way that trying again cannot mend.
    """
    last: DatabaseUnavailable | None = None
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(within):
            while True:
                try:
                    return await attempt()
                except DatabaseUnavailable as error:
                    if is_final(error):
                        raise
                    last = error
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
    except TimeoutError as error:
        reason = last.detail if last else "it did not answer"
        raise DatabaseUnavailable(f"PostgreSQL at {place} was not reached within {within} s: {reason}") from (
            last or error
        )


async def prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Teach a new connection to read and write JSON with orjson."""
    await connection.set_type_codec(
        "json", schema="pg_catalog", format="binary", encoder=orjson.dumps, decoder=orjson.loads
    )
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: _JSONB_VERSION + orjson.dumps(value),
        decoder=lambda raw: orjson.loads(memoryview(raw)[len(_JSONB_VERSION) :]),
    )
