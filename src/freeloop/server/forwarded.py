"""What a proxy tells of the client is read where it is told; other requests take the shorter way."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_NAMES: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})


class Forwarded:
    """Hands what comes from a proxy to uvicorn's middleware, and all else to the app behind it.

    That middleware is a coroutine around the app's: CPU time and memory for each request.

    Args:
        middleware: uvicorn's, with the proxies that it trusts.
    """

    def __init__(self, middleware: ProxyHeadersMiddleware) -> None:
        self._middleware = cast("ASGIApp", middleware)
        self._app = cast("ASGIApp", middleware.app)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Run one request; to be awaited."""
        for name, _ in scope.get("headers", ()):
            if name in _NAMES:
                return self._middleware(scope, receive, send)
        return self._app(scope, receive, send)


def shorten(app: Any) -> ASGIApp:  # noqa: ANN401 - what uvicorn has loaded
    """Return the app with the shorter way, where uvicorn has put its middleware around it."""
    return Forwarded(app) if type(app) is ProxyHeadersMiddleware else app
