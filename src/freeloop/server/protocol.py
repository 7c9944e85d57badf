"""uvicorn's HTTP protocols: answers leave together, what waits takes little memory, heads are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from freeloop.gate.refusals import head_too_large, malformed
from freeloop.server.outbox import Corked, Outbox

HEAD_TIMEOUT: Final = (
    30.0  # seconds from a connection, or the first byte of a request, to the end of its head
)
MOST_HEAD: Final = 65536  # bytes of a request's line and headers; h11 keeps to as many by itself


class Signal:
    """What uvicorn uses of :class:`asyncio.Event`, without its queue of 600 bytes while nobody waits."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def set(self) -> None:
        """Wake up all who wait."""
        self._set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Let the next ones wait."""
        self._set = False

    async def wait(self) -> None:
        """Wait until it is set."""
        if self._set:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        finally:
            self._waiters = tuple(each for each in self._waiters if each is not waiter)


class Flow(FlowControl):
    """uvicorn's, with a :class:`Signal`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._is_writable_event = cast("asyncio.Event", Signal())
        self._is_writable_event.set()


class _Ours(asyncio.Protocol):
    """What is ours in both of uvicorn's protocols; stands before the one of them."""

    outbox: Outbox  # of the server that it belongs to
    loop: asyncio.AbstractEventLoop
    flow: FlowControl
    transport: asyncio.Transport
    connections: set[Any]
    scope: Any
    cycle: Any
    timeout_keep_alive_task: asyncio.TimerHandle | None
    timeout_keep_alive_handler: Callable[[], None]
    _unset_keepalive_if_required: Callable[[], None]
    _since = 0.0  # when the first byte came of what is no request yet; 0: nothing has come
    _size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection."""
        corked = cast("asyncio.Transport", Corked(transport, self.outbox))
        super().connection_made(corked)
        self.flow = Flow(corked)
        self.close_in(HEAD_TIMEOUT)

    def close_in(self, seconds: float) -> None:
        """Close the connection then, unless something comes: uvicorn would wait for ever."""
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def send_400_response(self, _: str) -> None:
        """Answer what is no HTTP, in place of uvicorn's line of text."""
        self.refuse(malformed())

    def refuse(self, answer: Response) -> None:
        """Answer without the app, and close."""
        headers = [*answer.raw_headers, (b"connection", b"close")]
        lines = [b"%b: %b\r\n" % header for header in headers]
        status = HTTPStatus(answer.status_code)
        head = b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode())
        self.transport.write(b"".join([head, *lines, b"\r\n", bytes(answer.body)]))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        super().data_received(data)
        cycle = self.cycle
        head = self.scope is None or "method" not in self.scope  # it is not complete
        if not head and cycle is not None and not cycle.response_complete:
            if self._since:
                self._since, self._size = 0.0, 0
        elif self in self.connections and not self.transport.is_closing():  # and not a WebSocket by now
            self._wait_for_more(len(data) if head else 0)

    def _wait_for_more(self, size: int) -> None:
        """Keep to the bounds of a head; the time is also that of the rest of a body that nobody reads."""
        now = self.loop.time()
        self._since = self._since or now
        self._size += size
        if self._size > MOST_HEAD:
            self.refuse(head_too_large(MOST_HEAD))
        elif self.cycle is None or self.cycle.response_complete:
            self.close_in(self._since + HEAD_TIMEOUT - now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell uvicorn's request, and ours."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection was reset
        cast("Corked", self.transport).lose()


class HttpTools(_Ours, HttpToolsProtocol):
    """uvicorn's protocol on httptools."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cycle.message_event = cast("asyncio.Event", Signal())
        super()._start_asgi_task(cycle, app)


class H11(_Ours, H11Protocol):
    """uvicorn's protocol on h11."""


_OURS: Final[dict[type[asyncio.Protocol], type[HttpTools | H11]]] = {
    HttpToolsProtocol: HttpTools,
    H11Protocol: H11,
}


def corked(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return ours in place of uvicorn's HTTP protocol, for one server; any other as it is."""
    ours = _OURS.get(protocol)
    return protocol if ours is None else type(ours.__name__, (ours,), {"outbox": Outbox()})
