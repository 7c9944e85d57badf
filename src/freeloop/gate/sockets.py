"""WebSockets: each is a scope; they are counted apart from requests, and closed at the drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from freeloop.scope import Scope, choose_request_id

logger = logging.getLogger("freeloop.gate")

# After the close was sent nothing reaches the client any more; the app may clean up.
_CLOSE_TIMEOUT: Final = 1.0


class WebSockets:
    """Runs WebSockets in scopes without a deadline.

    Args:
        on_end: Called when one has ended.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._open: set[Scope] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def run(self, app: ASGIApp, asgi: ASGIScope, receive: Receive, send: Send, route: str) -> None:
        """Run ``app`` for one WebSocket."""
        headers = dict(asgi["headers"])
        request_id = choose_request_id(headers.get(b"x-request-id"), headers.get(b"traceparent"))
        scope = Scope(request_id, kind="websocket", route=route)
        scope.enter()
        self._open.add(scope)
        try:
            await app(asgi, receive, send)
        except asyncio.CancelledError:
            if scope.cause is None:
                raise
            # The server closes the connection behind us; raised again, it would log a traceback.
        finally:
            try:
                await scope.end_children()
            finally:
                self._open.discard(scope)
                scope.leave()
                self._on_end()

    def close(self) -> None:
        """Cancel those that still run a second from now; the server has sent 1012 (service restart)."""
        asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT, self.cancel)

    def cancel(self) -> None:
        """Cancel all."""
        for scope in self._open:
            scope.cancel("shutdown")
