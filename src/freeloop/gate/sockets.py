"""WebSockets: each is a scope; they are counted apart from requests, and closed at the drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from freeloop.scope import Scope, choose_request_id, read_trace

logger = logging.getLogger("freeloop.gate")

# After the close was sent nothing reaches the client any more; the app may clean up.
_CLOSE_TIMEOUT: Final = 1.0


class WebSockets:
    """Runs WebSockets in scopes without a deadline.

    Args:
        on_end: Called when one has ended.
        cleanup_timeout: Seconds that the clean-up of child tasks may take before they are cancelled again.
    """

    def __init__(self, on_end: Callable[[], None], *, cleanup_timeout: float) -> None:
        self._on_end = on_end
        self._cleanup_timeout = cleanup_timeout
        self._open: set[Scope] = set()
        self._closing = False

    def __contains__(self, scope: object) -> bool:
        return scope in self._open

    def __iter__(self) -> Iterator[Scope]:
        return iter(tuple(self._open))

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, app: ASGIApp, asgi: ASGIScope, receive: Receive, send: Send, route: str) -> None:
        """Run ``app`` for one WebSocket."""
        headers = dict(asgi["headers"])
        request_id = choose_request_id(headers.get(b"x-request-id"), headers.get(b"traceparent"))
        scope = Scope(request_id, kind="websocket", route=route)
        if (traceparent := headers.get(b"traceparent")) is not None:
            scope.trace = read_trace(traceparent, headers.get(b"tracestate"))
        scope.enter()
        self._open.add(scope)
        if self._closing:
            self._cancel_soon(scope)
        try:
            await app(asgi, receive, send)
        except asyncio.CancelledError:
            if scope.cause is None:
                raise
            # The server closes the connection behind us; raised again, it would log a traceback.
        finally:
            try:
                await scope.end_children(self._cleanup_timeout)
            finally:
                self._open.discard(scope)
                scope.leave()
                self._on_end()

    def close(self) -> None:
        """Cancel each that still runs a second from now; the server has sent 1012 (service restart).

        Those that open later (on a connection that was there already) are given their second, too.
        """
        self._closing = True
        for scope in self._open:
            self._cancel_soon(scope)

    def cancel(self) -> None:
        """Cancel all."""
        for scope in self._open:
            self._cancel(scope)

    def _cancel_soon(self, scope: Scope) -> None:
        asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT, self._cancel, scope)

    def _cancel(self, scope: Scope) -> None:
        if scope.cause is None:  # otherwise it cleans up already
            scope.cancel("shutdown")
