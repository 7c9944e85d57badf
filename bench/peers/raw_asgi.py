"""The same JSON route with no framework at all: what the server alone takes, so the limit."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

BODY = json.dumps({"id": 1, "name": "spanner", "unit": "piece", "stock": 12}, separators=(",", ":")).encode()
HEADERS = [(b"content-length", str(len(BODY)).encode()), (b"content-type", b"application/json")]
Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
