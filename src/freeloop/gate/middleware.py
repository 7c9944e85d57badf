"""The outermost ASGI layer: opens the scope, echoes its id, and reports each request as one record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ASGIScope

from freeloop.gate.problems import problem_response
from freeloop.records import RequestRecord
from freeloop.scope import Scope, choose_request_id, enter_scope

logger = logging.getLogger("freeloop.gate")
Observer = Callable[[RequestRecord], None]

_CLIENT_GONE: Final = 499  # nginx's code for a client that left before the response began


class Gate:
    """Pure ASGI middleware; every HTTP request passes it first and last.

    Args:
        app: The application.
        observers: Called with each ended request's record; they must not raise or block.
        max_body: The largest request body in bytes; a longer ``Content-Length`` is refused unread (413).
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

        request_id = traceparent = length = None
        for name, value in asgi["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"traceparent":
                traceparent = value
            elif name == b"content-length":
                length = value
        scope = Scope(choose_request_id(request_id, traceparent))
        enter_scope(scope)
        echo = (b"x-request-id", scope.id.encode("ascii"))
        status = _CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), echo]
            await send(message)

        try:
            if length is not None and int(length) > self.max_body:
                refusal = problem_response(
                    413,
                    f"The request body is larger than {self.max_body} bytes",
                    f"expected at most {self.max_body} bytes, announced were {int(length)}.",
                    headers={"Connection": "close"},
                )
                await refusal(asgi, receive, send_with_id)
            else:
                await self.app(asgi, receive, send_with_id)
        except Exception:
            # The problem document has been sent by the app's handler for Exception; where the response
            # had begun, the server has to cut the connection, and only sees that by the exception.
            logger.exception("unhandled error", extra={"method": asgi["method"], "path": asgi["path"]})
            if status < 500:
                raise
        finally:
            self._report(scope, asgi, status)

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


def install_gate(app: FastAPI, *, observers: Sequence[Observer], max_body: int) -> None:
    """Put a :class:`Gate` around the whole of ``app``, outside its own error and body-limit layers.

    ``add_middleware`` would place it inside them, and what they answer would bear no request id.
    """
    build = app.build_middleware_stack

    def build_with_gate() -> ASGIApp:
        return Gate(build(), observers=observers, max_body=max_body)

    app.build_middleware_stack = build_with_gate  # type: ignore[method-assign]
