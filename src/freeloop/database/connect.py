"""Make connections: one attempt, with one revival of the server where somebody keeps it for us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg
import orjson

from freeloop.database.address import FILES, Address, ServerPort
from freeloop.database.failure import connect_failure, is_final
from freeloop.database.mistakes import describe_mistake, find_unusable_file
from freeloop.database.session import Session
from freeloop.errors import DatabaseUnavailable, FreeloopError

CONNECT_TIMEOUT: Final = 5.0
_RECOVERY: Final = 1.0
_REVIVAL_PAUSE: Final = 1.0
_SLOW: Final = 1.0
_SILENCE: Final = 0.25
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_JSONB_VERSION: Final = b"\x01"
_GOODBYE: Final = 0.05
_CLOSE_TIMEOUT: Final = 5.0
# What asyncpg itself goes on to the next server for, where an address names several.
_NEXT_SERVER: Final = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
# ValueError: what it says of an argument or a variable of the environment that it cannot read.
_FAILURES: Final = (*_NEXT_SERVER, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError)

_T = TypeVar("_T")


class Misconfigured(DatabaseUnavailable):
    """The address, or a file that it names, must be mended first: trying again cannot help."""


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
        self._is_direct = address.pooler != "none"  # nobody claims that it is, so nobody has to prove it
        self._silent: dict[tuple[Any, Any], float] = {}
        self._revival: asyncio.Task[None] | None = None
        self._next_revival = 0.0
        self.trouble: DatabaseUnavailable | None = None
        """Why the latest attempt has not succeeded (yet); None where it has."""

    @property
    def place(self) -> str:
        """Where it connects to, for messages."""
        return self._address.place

    async def connect(self) -> Session:
        """Connect, in at most 5 s an attempt and twice at most: again only after the server was brought back.

        Several servers of one address are tried in their order, those that said nothing last; they share the
        5 s in equal parts.

        Raises:
            DatabaseUnavailable: No connection; ``is_final`` tells whether trying again can help.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            try:
                connection = await self._attempt()
            except (OSError, asyncpg.CannotConnectNowError) as error:
                # A server that took the connection and says nothing is not helped by another start.
                if self._server is None or isinstance(error, TimeoutError):
                    raise
                # Set before the wait: who gives up meanwhile shall hear what the trouble is.
                self.trouble = connect_failure(error, self._address.place, self._name)
                await self._revive(self._server)
                connection = await self._attempt()
        except DatabaseUnavailable as failure:
            self.trouble = failure
            raise
        except _FAILURES as error:
            self.trouble = await self._explain(error)
            raise self.trouble from error
        except asyncio.CancelledError:
            if self.trouble is None and loop.time() - started > _SLOW:
                self.trouble = connect_failure(TimeoutError(), self._address.place, self._name)
            raise
        self.trouble = None
        return connection

    async def _attempt(self) -> Session:
        # A server that says nothing uses up all the time that a caller has, each time, and those after it are
        # never reached: the one whose silence was longest ago is the most likely to be back.
        *others, last = attempts = sorted(
            self._address.attempts(), key=lambda server: self._silent.get(_place_of(server), 0.0)
        )
        seconds = CONNECT_TIMEOUT / len(attempts)
        for server in others:
            with suppress(*_NEXT_SERVER):
                return await self._reach(server, seconds)
        return await self._reach(last, seconds)

    async def _reach(self, server: dict[str, Any], seconds: float) -> Session:
        loop = asyncio.get_running_loop()
        started = loop.time()
        until = started + seconds
        more: dict[str, Any] = {}
        if self._address.pooler == "transaction":
            # The next statement may come to another server, where nothing has been prepared.
            more["statement_cache_size"] = 0
        try:
            connection: Session = await asyncpg.connect(
                **server,
                command_timeout=self._statement_timeout,
                # These two PgBouncer knows, and sets them wherever it sends a statement.
                server_settings={"application_name": "freeloop", "timezone": "UTC"},
                timeout=seconds,
                connection_class=Session,
                **more,
            )
        except (TimeoutError, asyncio.CancelledError):
            # Whoever is cancelled sooner went away by themselves.
            if loop.time() - started > _SILENCE:
                self._silent[_place_of(server)] = loop.time()
            raise
        self._silent.pop(_place_of(server), None)
        connection.notice_silence()
        if not self._is_direct:
            await self._prove_direct(connection, until)
        return connection

    async def _prove_direct(self, connection: Session, until: float) -> None:
        """Refuse a pooler that nobody has told of: errors under load would tell of it, at random.

        Raises:
            Misconfigured: Another process answered than the one that the login was answered by.
        """
        try:
            async with asyncio.timeout_at(until):
                pid = await connection.find_server_pid()
        except BaseException:
            connection.terminate()
            raise
        if pid != connection.get_server_pid():
            connection.terminate()
            raise Misconfigured(
                f"a connection pooler answers at {self._address.place} ({self._address.setting}). Expected "
                "PostgreSQL itself; for a pooler at FREELOOP_DATABASE_URL, set FREELOOP_DATABASE_POOLER to "
                "its mode, transaction or session."
            )
        self._is_direct = True

    async def _explain(self, error: Exception) -> DatabaseUnavailable:
        place = self._address.place
        unusable = None
        if isinstance(error, OSError) and any(self._address.parameter(name) for name in FILES):
            # What comes for a file that is missing says neither which one, nor that it was a file.
            unusable = await asyncio.to_thread(find_unusable_file, self._address)
        if isinstance(error, asyncpg.PostgresError):
            # asyncpg closes a refused connection behind our back, which over TLS takes an answer of the
            # server. A loop that ends meanwhile, as after a failed start, ends with an error of its own.
            await asyncio.sleep(_GOODBYE)
        mistake = unusable or describe_mistake(error, self._address)
        if mistake is not None:
            return Misconfigured(f"{mistake} Check {self._address.setting}.")
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            wanted = self._address.parameter("target_session_attrs")
            return DatabaseUnavailable(
                f"none of {place} is of the kind that target_session_attrs={wanted} asks for."
            )
        return connect_failure(error, place, self._name, self._address.setting)

    def past_pooler(self, purpose: str) -> Connector:
        """Return what makes connections whose session is one's own; see :meth:`Address.past_pooler`."""
        address = self._address.past_pooler(purpose)
        if address is self._address:
            return self
        return Connector(address, statement_timeout=self._statement_timeout, name=self._name)

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
            connection = await self._attempt()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise connect_failure(error, self._address.place, self._name) from error
        connection.terminate()


def _place_of(server: dict[str, Any]) -> tuple[Any, Any]:
    return server.get("host"), server.get("port")


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
                    if is_final(error) or isinstance(error, Misconfigured):
                        raise
                    last = error
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
    except TimeoutError as error:
        reason = last.detail if last else "it did not answer"
        raise DatabaseUnavailable(
            f"PostgreSQL at {place} was not reached within {within:.3g} s: {reason}"
        ) from (last or error)


@asynccontextmanager
async def connected(
    address: Address, *, within: float, name: str
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Give one connection without a statement timeout, and end it after the block.

    Args:
        address: where PostgreSQL listens.
        within: seconds during which an unreachable server is tried again.
        name: what it is for, for messages.

    Raises:
        DatabaseUnavailable: The server was not reached in time, or the connection broke.
    """
    connector = Connector(address, name=name)
    connection = await retry_until_reached(connector.connect, within=within, place=address.place)
    try:
        yield connection
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailable(f"the connection to {address.place} for '{name}' broke: {error}") from error
    finally:
        try:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=_CLOSE_TIMEOUT)
        finally:
            connection.terminate()


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
