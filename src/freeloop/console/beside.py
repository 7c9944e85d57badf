"""Hands requests below a path to the console, before the gate: neither counted, admitted nor shed there."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from freeloop.gate.bulkheads import path_within


class Beside:
    """An ASGI app in front of another.

    Args:
        app: Gets all other requests.
        path: Where the console is, such as ``/console``.
        console: Gets those for the path and below it.
    """

    def __init__(self, app: ASGIApp, path: str, console: ASGIApp) -> None:
        self._app = app
        self._path = path
        self._console = console

    # Not async: every request of the app would pay for a frame that stands in memory while it waits.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Run one request."""
        if scope["type"] == "http" and self._path in scope["path"]:
            path = path_within(scope)
            if path == self._path or path.startswith(f"{self._path}/"):
                root = scope["path"][: len(scope["path"]) - len(path)] + self._path
                return self._console(
                    {**scope, "root_path": root, "path": root + (path[len(self._path) :] or "/")},
                    receive,
                    send,
                )
        return self._app(scope, receive, send)


def put_beside(app: Any, path: str, console: ASGIApp) -> None:  # noqa: ANN401 - a Starlette
    """Put the console next to an app that goes on to be used as it is; after the gate was put around it."""
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Beside(build(), path, console)
