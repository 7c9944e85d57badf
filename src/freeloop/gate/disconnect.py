"""Notices that the client has gone where the server does not say so by itself.

uvicorn's own objects are asked (see :mod:`freeloop.gate.exchange`). Other servers say it only to whoever
receives the next message, so here the messages are read ahead, and handed to the app in their order.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import Any, Final

from starlette.types import Message, Receive

_MOST_AHEAD: Final = 64 * 1024
_HUNG_UP: Final = (
    getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)
)


def is_gone(connection: Any) -> bool:  # noqa: ANN401 - one of uvicorn's, or a ReadAhead
    """Return whether the client of a request has gone.

    Args:
        connection: The object that has the request's ``receive``.
    """
    if connection.disconnected:
        return True
    transport = getattr(connection, "transport", None)
    if transport is None:
        return False
    flow = getattr(connection, "flow", None)
    # uvicorn tells only the last of several requests on a connection, and none at all while it does not
    # read: the app leaves a long body unread, or the next request has come already.
    return transport.is_closing() or (flow is not None and flow.read_paused and _has_hung_up(transport))


def confirm_gone(connection: Any) -> None:  # noqa: ANN401 - as above
    """Tell uvicorn what :func:`is_gone` has found first: a missing answer is no mistake of the app."""
    transport = getattr(connection, "transport", None)
    if transport is not None and not connection.disconnected:
        connection.disconnected = True
        transport.abort()


def _has_hung_up(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if sock is None or not _HUNG_UP:
        return False  # not to know is no reason to cancel
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), _HUNG_UP)
    return bool(poll.poll(0))


class Undisturbed:
    """The way in of a route that runs to its end: nothing behind the body says that the client has gone.

    Starlette ends a stream by itself where it hears of that.
    """

    __slots__ = ("_complete", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._complete = False

    async def receive(self) -> Message:
        """Return the next message of the body; behind its last one, wait."""
        message = await self._receive()
        if self._complete:
            await asyncio.get_running_loop().create_future()
        self._complete = message["type"] == "http.request" and not message.get("more_body", False)
        return message


class ReadAhead:
    """Stands between the server's ``receive`` and the app's.

    A task of its own reads ahead once it was asked whether the client is there; it keeps at most 64 KiB that
    the app has not taken yet, so a client that sends more is only noticed to have gone when the app reads.

    Attributes:
        disconnected: Whether the client has gone.
    """

    __slots__ = (
        "_ahead",
        "_arrived",
        "_error",
        "_receive",
        "_receiving",
        "_size",
        "_taken",
        "_task",
        "_told",
    )

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: deque[Message] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: Message | None = None
        self._error: Exception | None = None
        self._receiving = False  # the app itself waits for a message, and will be told first

    @property
    def disconnected(self) -> bool:
        """Whether the client has gone; the first question begins to read ahead."""
        if self._task is None and not self._receiving:
            self._task = asyncio.get_running_loop().create_task(self._read())
        return self._told is not None

    async def receive(self) -> Message:
        """Return the next message."""
        if self._task is None:
            return await self._receive_directly()
        while not self._ahead:
            if self._told is not None:
                return self._told
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        message = self._ahead.popleft()
        self._size -= len(message.get("body", b""))
        self._taken.set()
        return message

    async def _receive_directly(self) -> Message:
        self._receiving = True
        try:
            message = await self._receive()
        finally:
            self._receiving = False
        if message["type"] == "http.disconnect":
            self._told = message
        return message

    def close(self) -> None:
        """End the reading."""
        if self._task is not None:
            self._task.cancel()

    async def _read(self) -> None:
        while self._told is None:
            while self._size > _MOST_AHEAD:
                self._taken.clear()
                await self._taken.wait()
            try:
                message = await self._receive()
            except Exception as error:  # noqa: BLE001 - raised where the app receives
                self._error = error
                self._arrived.set()
                return
            if message["type"] == "http.disconnect":
                self._told = message
            else:
                self._ahead.append(message)
                self._size += len(message.get("body", b""))
            self._arrived.set()
