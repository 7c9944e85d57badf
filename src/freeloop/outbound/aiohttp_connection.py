"""What aiohttp's connections lack: nobody reads an answer that nobody asked for, and closing is at once.

Built on two of aiohttp's inner classes, which have no public seam for this: the connector's factory of
protocols, and the protocol. The tests of this module fail where a new aiohttp changes them.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from freeloop.outbound.addresses import is_public
from freeloop.scope import borrow

_INSIDE: Final = 3  # calls between a lease and the app, at least: this one, aiohttp's request, the client's


class StaleConnectionError(aiohttp.ServerDisconnectedError):
    """A connection from the pool broke before a byte of the answer came: the server had given it up."""


class AddressNotPublicError(OSError):
    """The host's address is not one of the public internet, and nothing else was allowed."""


class Connector(aiohttp.TCPConnector):
    """aiohttp's pool, of connections that carry one answer a request.

    Args:
        public_only: Whether no other address than one of the public internet is ever connected. Checked on
            the address itself, right before it is connected: names that lead elsewhere the second time
            (DNS rebinding) and literal addresses come by here alike.
        options: As of :class:`aiohttp.TCPConnector`.
    """

    def __init__(self, *, public_only: bool, **options: Any) -> None:  # noqa: ANN401 - handed on
        super().__init__(socket_factory=_open_public if public_only else None, **options)
        self._factory = partial(  # type: ignore[assignment]  # mypy takes partial for invariant
            _Connection, loop=asyncio.get_running_loop()
        )

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> aiohttp.connector.Connection:
        """Lend a connection; the scope has borrowed it until it is given back, or closed."""
        connection = await super().connect(req, traces, timeout)
        key = req.connection_key
        connection.add_callback(borrow("socket", f"{key.host}:{key.port}", _INSIDE).release)
        return connection


class _Connection(ResponseHandler):
    """One connection, with the exchange that is under way on it.

    An answer that nobody asked for (from a proxy that is out of step, a server that answers twice, or one
    that gives up an idle connection with a 408) would stand in the queue of aiohttp 3.14 until the next
    request takes it for its own. Here it ends the connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._exchanges = 0
        self._touched = False  # a byte has come in this exchange
        self._answer: StreamReader | None = None  # the body of its answer

    def set_response_params(self, **parameters: Any) -> None:  # noqa: ANN401 - handed on
        """Begin an exchange."""
        if self._tail:
            # It spoke before it was asked, which aiohttp would take for the answer.
            self._tail = b""
            self.close()
        self._exchanges += 1
        self._touched = False
        self._answer = None
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the answer is complete already."""
        if self._answer is None or not self._answer.is_eof():
            self._touched = True
            super().data_received(data)
            if self._answer is None or not self._answer.is_eof() or not self._holds_more():
                return
        elif not data:
            return  # aiohttp goes on with what it holds
        self.close()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take an answer, and only one."""
        if self._answer is not None:
            self.close()
            return
        message, body = data
        # After any other status below 200 aiohttp waits for the answer; after these, who knows what comes?
        final_below_200 = message.code < 100 or message.code == 101
        if message.code >= 200 or final_below_200:
            self._answer = body
        if final_below_200:
            self.force_close()
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail the exchange; tell a connection that was stale from a server that failed."""
        gone = isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        if gone and self._exchanges > 1 and not self._touched:
            exc = StaleConnectionError()
        super().set_exception(exc, *cause)

    def close(self) -> None:
        """Free the socket now.

        aiohttp's own close waits until a peer has taken what is still to be sent, or has said goodbye in
        TLS: some never do. What is closed here has nothing left to say.
        """
        if self._answer is not None and not self._answer.is_eof():
            # aiohttp would let whoever reads it wait for ever.
            self._answer.set_exception(aiohttp.ClientConnectionError())
        self.force_close()
        self.abort()

    def _holds_more(self) -> bool:
        """Whether the packet in which the answer ended holds a part of another one."""
        if self._parser is None or self._tail:
            return bool(self._tail)
        try:
            # Nothing else tells. The parser is not used again: the next exchange makes its own.
            return self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 - whatever it says of what it holds, it holds something
            return True


def _open_public(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, place = info
    if not is_public(ip_address(place[0])):
        # One text for all: where a name has several addresses, aiohttp keeps the class of equal ones only.
        raise AddressNotPublicError("the address is not public")
    return socket.socket(family=family, type=kind, proto=protocol)
