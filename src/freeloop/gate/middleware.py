"""The outermost ASGI layer: opens the scope, echoes its id, and reports each request as one record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope

from freeloop.gate.problems import problem_response
from freeloop.records import RequestRecord
from freeloop.scope import Scope, choose_request_id, enter_scope

logger = logging.getLogger("freeloop.gate")
Observer = Callable[[RequestRecord], None]

_NO_ANSWER: Final = 499  # nginx's code for a request that ended without an answer


class Gate:
    """Pure ASGI middleware; every HTTP request passes it first and last.

    It is kept thin, since each layer is a coroutine that stands in memory while a request waits.

    Args:
        app: The application.
        observers: Called with each ended request's record; they must not raise or block.
        max_body: The largest request body in bytes (413): a longer ``Content-Length`` is refused unread, a
            body without one is counted as it comes.
    """

    def __init__(self, app: ASGIApp, *, observers: Sequence[Observer], max_body: int) -> None:
        self.app = app
        self.observers = observers
        self.max_body = max_body

    async def __call__(self, asgi: ASGIScope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if asgi["type"] != "http":
            await self.app(asgi, receive, send)
            return
        request_id, length, chunked = _read_headers(asgi)
        if chunked:
            receive = _Counted(receive, self.max_body).receive
        scope = Scope(request_id)
        enter_scope(scope)
        response = _Response(send, scope.id)
        try:
            if length > self.max_body:
                refusal = problem_response(
                    413,
                    f"The request body is larger than {self.max_body} bytes",
                    f"expected at most {self.max_body} bytes, announced were {length}.",
                    headers={"Connection": "close"},
                )
                await refusal(asgi, receive, response.send)
            else:
                await self.app(asgi, receive, response.send)
        except asyncio.CancelledError:
            # Only the server cancels out here: the time for running requests is over at shutdown. The task
            # ends with this answer; raised again, the server would answer by itself, and log a traceback.
            if response.status is None:
                refusal = problem_response(
                    503,
                    "The service is shutting down",
                    "The request was not finished when the time for running requests was over.",
                    headers={"Connection": "close", "Retry-After": "1"},
                )
                await refusal(asgi, receive, response.send)
        except Exception:
            logger.exception("unhandled error", extra={"method": asgi["method"], "path": asgi["path"]})
            if response.status is not None:
                raise  # it has begun: the server has to cut it, and only sees that by the exception
            failure = problem_response(
                500,
                "Internal error",
                "The service failed unexpectedly; the log has the reason under this request id.",
            )
            await failure(asgi, receive, response.send)
        finally:
            self._report(scope, asgi, response.status or _NO_ANSWER)

    def _report(self, scope: Scope, asgi: ASGIScope, status: int) -> None:
        route = asgi.get("route")
        client = asgi.get("client")
        record = RequestRecord(
            scope.id,
            asgi["method"],
            asgi["path"],
            getattr(route, "path", ""),
            status,
            time.perf_counter() - scope.started,
            client[0] if client else "",
        )
        for observe in self.observers:
            observe(record)


def _read_headers(asgi: ASGIScope) -> tuple[str, int, bool]:
    """Return the request id, the announced length of the body (0: none), and whether it comes in chunks."""
    headers = dict(asgi["headers"])
    length = headers.get(b"content-length", b"")
    return (
        choose_request_id(headers.get(b"x-request-id"), headers.get(b"traceparent")),
        int(length) if length.isdigit() else 0,
        b"transfer-encoding" in headers,
    )


class _Response:
    """The way out: adds the request id, and remembers the status once the response has begun."""

    __slots__ = ("_request_id", "_send", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            echo = (b"x-request-id", self._request_id.encode("ascii"))
            message["headers"] = [*message.get("headers", ()), echo]
        await self._send(message)


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


def install_gate(app: FastAPI, *, observers: Sequence[Observer], max_body: int) -> None:
    """Put a :class:`Gate` around the whole of ``app``, in the place of Starlette's own error layer.

    ``add_middleware`` would place it inside that layer, and what it answers would bear no request id.
    """
    build = app.build_middleware_stack

    def build_with_gate() -> ASGIApp:
        stack = build()
        inner = stack.app if isinstance(stack, ServerErrorMiddleware) else stack
        if app.max_body_size is None:
            _leave_out_body_limit(inner)
        return Gate(inner, observers=observers, max_body=max_body)

    app.build_middleware_stack = build_with_gate  # type: ignore[method-assign]


def _leave_out_body_limit(layer: ASGIApp) -> None:
    """Unlink FastAPI's own body limit where it limits nothing: each layer takes memory in every request."""
    below: Any = getattr(layer, "app", None)
    if type(below).__name__ == "AppBodyLimitMiddleware":
        layer.app = below.app  # type: ignore[attr-defined]  # found by the getattr above
