"""Puts a gate around an app that goes on to be used as it is."""

from __future__ import annotations

from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp

from freeloop.gate.middleware import Gate


def install_gate(app: Starlette, gate: Gate) -> None:
    """Put ``gate`` around the whole of ``app``, outside of its own middleware.

    ``add_middleware`` would place it inside Starlette's own error layer, and what that answers would bear no
    request id.
    """
    build = app.build_middleware_stack

    def build_with_gate() -> ASGIApp:
        gate.app = build()
        return gate

    app.build_middleware_stack = build_with_gate  # type: ignore[method-assign]


def leave_out_idle_layers(app: Starlette) -> None:
    """Drop the layers of ``app`` that do nothing behind a gate: each takes memory in every waiting request.

    That is Starlette's error layer, whose work the gate does, and FastAPI's body limit where it limits
    nothing. To be called before :func:`install_gate`.
    """
    build = app.build_middleware_stack

    def build_without() -> ASGIApp:
        stack = build()
        inner: Any = stack.app if isinstance(stack, ServerErrorMiddleware) else stack
        below: Any = getattr(inner, "app", None)
        if getattr(app, "max_body_size", None) is None and type(below).__name__ == "AppBodyLimitMiddleware":
            inner.app = below.app
        return cast("ASGIApp", inner)

    app.build_middleware_stack = build_without  # type: ignore[method-assign]
