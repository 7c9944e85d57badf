"""The outermost ASGI layer: each request becomes a scope, is let through, ended in time, and reported."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope

from freeloop.gate import refusals
from freeloop.gate.admission import Verdict
from freeloop.gate.bulkheads import Bulkheads, path_within
from freeloop.gate.disconnect import ReadAhead, Undisturbed
from freeloop.gate.exchange import Exchange
from freeloop.gate.pages import Page
from freeloop.gate.policy import Policy
from freeloop.gate.reaper import Reaper
from freeloop.gate.sockets import WebSockets
from freeloop.records import RequestRecord
from freeloop.scope import Scope, choose_request_id, limit_wait, read_trace

logger = logging.getLogger("freeloop.gate")
Observer = Callable[[RequestRecord], None]

_HTTP_1: Final = frozenset({"1.0", "1.1"})  # later versions send bodies of no announced length as they are
# Marks a request in its ASGI scope, for a gate within a gate; holds the owner of the innermost.
PASSED: Final = "freeloop.passed"


class Gate:
    """Pure ASGI middleware; every HTTP request and WebSocket passes it first and last.

    It is kept thin, since each layer is a coroutine that stands in memory while a request waits.

    Args:
        app: The application.
        observers: Called with each ended request's record; they must not raise or block.
        policy: Deadline, limits and the like.
        pages: What the gate answers itself, by path, where the app has no such route.
        owner: Who has put it there; a request finds it in its ASGI scope.

    Attributes:
        draining: Whether the shutdown has begun.
        bulkheads: What is kept for each route.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        observers: Sequence[Observer] = (),
        policy: Policy | None = None,
        pages: Mapping[str, Page] | None = None,
        owner: object = None,
    ) -> None:
        self.app = app
        self._owner = owner
        self.observers = list(observers)
        self.policy = policy or Policy()
        self.bulkheads = Bulkheads(app, max_concurrency=self.policy.max_concurrency)
        self.draining = False
        self._pages = pages or {}
        self._reaper = Reaper(cleanup_timeout=self.policy.cleanup_timeout)
        self._sockets = WebSockets(self._tell_idle, cleanup_timeout=self.policy.cleanup_timeout)
        self._idle = asyncio.Event()
        self._deadline_header = (self.policy.deadline_header or "").lower().encode("latin-1")

    async def __call__(self, asgi: ASGIScope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if asgi["type"] != "http" or PASSED in asgi:
            await self._pass(asgi, receive, send)
            return
        if not hasattr(getattr(receive, "__self__", None), "disconnected"):
            receive = ReadAhead(receive).receive
        headers = dict(asgi["headers"])
        exchange = Exchange(
            choose_request_id(headers.get(b"x-request-id"), headers.get(b"traceparent")),
            self.bulkheads.find(asgi),
            self.policy.deadline,
            receive,
            send,
        )
        if (traceparent := headers.get(b"traceparent")) is not None:
            exchange.trace = read_trace(traceparent, headers.get(b"tracestate"))
        if exchange.bulkhead.declaration.finish:
            receive = Undisturbed(receive).receive
        exchange.enter()
        asgi[PASSED] = self._owner
        self._reaper.watch(exchange)
        try:
            try:
                receive, refusal = self._screen(exchange, asgi, headers, receive)
                del headers  # not to stand in memory while the request waits
                if exchange.queued and refusal is None:
                    refusal = await self._queue(exchange)
                await (refusal or self.app)(asgi, receive, exchange.send)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - answered, or raised again
                await self._settle(exchange, asgi, receive, error)
            else:
                if exchange.unsettled:
                    await self._settle(exchange, asgi, receive, None)
        finally:
            self._close(exchange, asgi)

    def __contains__(self, scope: object) -> bool:
        return scope in self._reaper or scope in self._sockets

    @property
    def scopes(self) -> Iterator[Scope]:
        """Requests and WebSockets that run now."""
        return itertools.chain(self._reaper, self._sockets)

    @property
    def running(self) -> int:
        """HTTP requests that run now, streams and what runs after an answer included."""
        return len(self._reaper)

    @property
    def streams(self) -> int:
        """Answers that stream now."""
        return sum(exchange.streaming and not exchange.answered for exchange in self._reaper)

    @property
    def websockets(self) -> int:
        """WebSockets that are open."""
        return len(self._sockets)

    def drain(self) -> None:
        """Begin the shutdown: readiness answers 503, and connections close behind their answers."""
        self.draining = True
        for exchange in self._reaper:
            exchange.closing = True

    def close_streams(self) -> None:
        """End what would never end by itself: streams of events at their next pause, and WebSockets.

        Those that begin later, on connections that are there already, are ended too.
        Those who open WebSockets (the server) send the close frame.
        """
        self._reaper.close_events()
        self._sockets.close()

    def cancel(self) -> None:
        """Cancel everything that runs; what was not answered yet is answered with 503."""
        for exchange in self._reaper:
            if exchange.cause is None:  # otherwise it cleans up already
                exchange.cancel("shutdown")
        self._sockets.cancel()

    async def wait_idle(self) -> None:
        """Wait until nothing runs."""
        while self._reaper or self._sockets:
            self._idle.clear()
            await self._idle.wait()

    def _screen(
        self, exchange: Exchange, asgi: ASGIScope, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[Receive, Response | None]:
        """Look at a request before the app does; return where its body comes from, and what refuses it."""
        policy = self.policy
        bulkhead = exchange.bulkhead
        if policy.server_timing:
            exchange.timed = True
        refusal = None
        if self.draining:
            exchange.closing = True
            if path_within(asgi) == policy.readiness_path:
                return receive, refusals.draining()
        if bulkhead is self.bulkheads.others and (page := self._pages.get(path_within(asgi))):
            return receive, page(headers)
        if self._deadline_header and self._deadline_header in headers:
            refusal = self._shorten(exchange, headers[self._deadline_header].decode("latin-1"))
        if policy.max_body is not None:
            length = headers.get(b"content-length", b"")
            if length.isdigit() and int(length) > policy.max_body:
                refusal = refusals.too_large(int(length), policy.max_body)
            elif not length and (b"transfer-encoding" in headers or asgi.get("http_version") not in _HTTP_1):
                receive = _Counted(receive, policy.max_body).receive
        if refusal is None and (admission := bulkhead.admission) is not None:
            verdict = admission.arrive(exchange.started)
            if verdict is Verdict.ADMIT:
                exchange.admitted = exchange.started
            elif verdict is Verdict.SHED:
                refusal = refusals.overloaded(exchange, admission.retry_after)
            else:
                exchange.queued = True
        return receive, refusal

    def _shorten(self, exchange: Exchange, value: str) -> Response | None:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            return refusals.wrong_deadline(self.policy.deadline_header or "", value)
        exchange.shorten(seconds)
        return None

    async def _queue(self, exchange: Exchange) -> Response | None:
        """Wait for a place at the bulkhead; return what refuses the request where none came free."""
        admission = exchange.bulkhead.admission
        if admission is None:
            return None
        with exchange.spend("queue"):
            if await exchange.bulkhead.wait(admission, limit_wait(admission.wait_limit)):
                exchange.admitted = time.monotonic()
                return None
        return refusals.overloaded(exchange, admission.retry_after)

    async def _settle(
        self, exchange: Exchange, asgi: ASGIScope, receive: Receive, error: BaseException | None
    ) -> None:
        """Bring a request to its end that did not come there by itself."""
        if _uncancel() and exchange.cause is None:
            exchange.cause = "shutdown"  # only the server cancels from outside
            exchange.cancelled_at = time.monotonic()
        try:
            await exchange.end_children(self.policy.cleanup_timeout)
        except asyncio.CancelledError:
            _uncancel()
        cause = exchange.cause
        if cause is None:
            if error is not None:
                await self._fail(exchange, asgi, receive, error)
        elif exchange.answering is not None:
            # The client may not read; then its connection is cut.
            await asyncio.wait([exchange.answering], timeout=self.policy.cleanup_timeout)
        elif exchange.status is None:
            if cause == "shutdown":  # the server itself has cancelled it
                await exchange.answer(refusals.cut_at_shutdown(exchange))
        elif exchange.events and cause == "shutdown" and not exchange.answered:
            await exchange.complete()  # a proper end, at which an EventSource connects again, elsewhere

    async def _fail(
        self, exchange: Exchange, asgi: ASGIScope, receive: Receive, error: BaseException
    ) -> None:
        logger.error(
            "unhandled error", extra={"method": asgi["method"], "path": asgi["path"]}, exc_info=error
        )
        if exchange.status is None:
            await refusals.failed()(asgi, receive, exchange.send)
        elif not exchange.answered:
            raise error  # the server has to cut the answer, and only sees that by the exception

    def _close(self, exchange: Exchange, asgi: ASGIScope) -> None:
        self._reaper.forget(exchange)
        exchange.close()
        record = exchange.report(asgi)
        for observe in self.observers:
            observe(record)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not self._reaper and not self._sockets:
            self._idle.set()

    async def _pass(self, asgi: ASGIScope, receive: Receive, send: Send) -> None:
        """Let through what is no request, and what an outer gate has let through already."""
        passed = PASSED in asgi
        asgi[PASSED] = self._owner
        if asgi["type"] == "websocket" and not passed:
            await self._sockets.run(self.app, asgi, receive, send, self.bulkheads.find(asgi).template)
        else:
            await self.app(asgi, receive, send)


def _uncancel() -> bool:
    """Make the running task one that was not cancelled; return whether it was.

    A ``CancelledError`` may also come from a task that the app has awaited: that is the app's failure.
    """
    task = asyncio.current_task()
    cancelled = task is not None and task.cancelling() > 0
    while task is not None and task.cancelling():
        task.uncancel()
    return cancelled


class _Counted:
    """The way in for a body that did not announce its length."""

    __slots__ = ("_left", "_limit", "_receive")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = self._left = limit

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            # FastAPI hands an HTTPException on from there; anything else it calls a malformed body.
            raise HTTPException(
                413, f"expected at most {self._limit} bytes, more came.", headers={"Connection": "close"}
            )
        return message
