"""uvicorn's word on proxies holds, and requests without one pass by it."""

from __future__ import annotations

from typing import Any

import pytest
import uvicorn

from freeloop.server.forwarded import Forwarded, shorten


async def seen(headers: list[tuple[bytes, bytes]], client: str = "127.0.0.1") -> dict[str, Any]:
    """Return the ASGI scope of a request as the app sees it."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    shortened = shorten(config.loaded_app)
    assert type(shortened) is Forwarded
    scope = {"type": "http", "client": (client, 1), "scheme": "http", "headers": headers}
    await shortened(scope, None, None)  # type: ignore[arg-type]
    return scopes[0]


async def test_a_trusted_proxy_is_believed() -> None:
    scope = await seen([(b"x-forwarded-for", b"192.0.2.7"), (b"x-forwarded-proto", b"https")])
    assert scope["client"][0] == "192.0.2.7"
    assert scope["scheme"] == "https"


async def test_nobody_else_is() -> None:
    scope = await seen([(b"x-forwarded-for", b"192.0.2.7")], client="198.51.100.1")
    assert scope["client"][0] == "198.51.100.1"


@pytest.mark.parametrize("headers", [[], [(b"host", b"here")]])
async def test_a_request_without_those_headers_passes_by(headers: list[tuple[bytes, bytes]]) -> None:
    assert (await seen(headers))["client"] == ("127.0.0.1", 1)


def test_an_app_that_uvicorn_has_not_wrapped_stays_as_it_is() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert shorten(app) is app
