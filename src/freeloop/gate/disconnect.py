"""Notices that the client has gone where the server does not say so by itself.

uvicorn's own objects are asked (see :mod:`freeloop.gate.exchange`). Other servers say it only to whoever
receives the next message, so here the messages are read ahead, and handed to the app in their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from starlette.types import Message, Receive

_MOST_AHEAD: Final = 64 * 1024


class ReadAhead:
    """Stands between the server's ``receive`` and the app's.

    A task of its own reads ahead once it was asked whether the client is there; it keeps at most 64 KiB that
    the app has not taken yet, so a client that sends more is only noticed to have gone when the app reads.

    Attributes:
        disconnected: Whether the client has gone.
    """

    __slots__ = ("_ahead", "_arrived", "_receive", "_receiving", "_size", "_taken", "_task", "_told")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: deque[Message] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: Message | None = None
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
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._told = message
            else:
                self._ahead.append(message)
                self._size += len(message.get("body", b""))
            self._arrived.set()
