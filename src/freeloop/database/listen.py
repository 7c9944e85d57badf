"""Notifications: LISTEN on a connection of its own that comes back by itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import asyncpg

from freeloop.database.connect import Connector, Misconfigured
from freeloop.errors import DatabaseUnavailable
from freeloop.events import wait_at_most

_HEALTH_INTERVAL: Final = 10.0
_HEALTH_TIMEOUT: Final = 5.0
_CLOSE_TIMEOUT: Final = 1.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_BUFFER: Final = 1024


@dataclass(frozen=True, slots=True)
class Notification:
    """What NOTIFY sent.

    Both fields are empty after every (re)connect, and where the reader was too slow for its buffer:
    something may have been missed, so read the state again.
    """

    channel: str
    payload: str


MISSED: Final = Notification(channel="", payload="")


class Listener(AbstractAsyncContextManager[AsyncIterator[Notification]], AsyncIterator[Notification]):
    """Notifications in their order, for one reader.

    Entering connects once; where the server is down, iterating goes on trying (after 0.1 s, doubled to
    at most 5 s). A connection that is silent for 10 s is asked for a sign of life and replaced after 5
    more, so a half-dead one lasts 15 s at most. At most 1,024 notifications are kept for a slow reader;
    beyond that they are dropped for a single "something was missed".

    Args:
        connector: makes the connections.
        channels: names of the channels, taken literally (no folding to lower case).
        health_interval: seconds of silence after which the connection is asked.
        health_timeout: seconds that the answer may take.
    """

    def __init__(
        self,
        connector: Connector,
        channels: Sequence[str],
        *,
        health_interval: float = _HEALTH_INTERVAL,
        health_timeout: float = _HEALTH_TIMEOUT,
    ) -> None:
        self._connector = connector
        self._channels = channels
        self._health_interval = health_interval
        self._health_timeout = health_timeout
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._arrived: deque[Notification] = deque()
        self._wake = asyncio.Event()
        self._pause = _FIRST_PAUSE
        self._closed = False

    async def __aenter__(self) -> AsyncIterator[Notification]:
        try:
            await self._connect()
        except Misconfigured:
            raise
        except DatabaseUnavailable:
            pass  # iterating goes on trying
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._wake.set()
        if self._connection is not None:
            await _end(self._connection)

    async def __anext__(self) -> Notification:
        while not self._arrived:
            if self._closed:
                raise StopAsyncIteration
            if self._connection is None or self._connection.is_closed():
                await self._reconnect()
            else:
                await self._wait(self._connection)
        return self._arrived.popleft()

    async def _wait(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._wake.clear()
        if not await wait_at_most(self._wake, self._health_interval):
            await self._probe(connection)

    async def _probe(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        try:
            async with asyncio.timeout(self._health_timeout):
                await connection.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
        else:
            self._pause = _FIRST_PAUSE

    async def _reconnect(self) -> None:
        # Before the attempt, and not reset by one that succeeds: a server that takes connections only
        # to drop them is not stormed either.
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        with suppress(DatabaseUnavailable):
            await self._connect()

    async def _connect(self) -> None:
        connection = await self._connector.connect()
        try:
            connection.add_termination_listener(self._on_end)
            async with asyncio.timeout(self._health_timeout):
                for channel in self._channels:
                    await connection.add_listener(channel, self._on_notification)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, OSError | asyncpg.PostgresError | asyncpg.InterfaceError):
                raise DatabaseUnavailable(f"could not listen: {error}") from error
            raise
        self._connection = connection
        self._note(MISSED)

    def _on_notification(self, _connection: object, _pid: int, channel: object, payload: object) -> None:
        self._pause = _FIRST_PAUSE
        self._note(Notification(channel=str(channel), payload=str(payload)))

    def _on_end(self, _connection: object) -> None:
        self._wake.set()

    def _note(self, notification: Notification) -> None:
        if len(self._arrived) >= _BUFFER:
            self._arrived.clear()
            notification = MISSED
        self._arrived.append(notification)
        self._wake.set()


async def _end(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    try:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=_CLOSE_TIMEOUT)
    finally:
        connection.terminate()
