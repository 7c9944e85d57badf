"""What FastAPI takes in front of a handler: CPU time of a request beyond that of a plain route."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response

_BATCH, _BATCHES = 100, 60
_ROUTERS = 5
_SCOPE: Mapping[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/data",
    "raw_path": b"/data",
    "root_path": "",
    "query_string": b"",
    "headers": [],
    "client": None,
    "server": None,
}


async def _plain(request: Request) -> Response:
    return Response()


async def _with_parameters(
    request: Request,
    source: Annotated[tuple[str, ...], Query()] = (),
    policy: Literal["collect", "first-error"] = "collect",
) -> Response:
    return Response()


async def _one() -> int:
    return 1


async def _two() -> int:
    return 2


async def _with_dependencies(
    request: Request,
    one: Annotated[int, Depends(_one)],
    two: Annotated[int, Depends(_two)],
) -> Response:
    return Response()


def measure_routing(batches: int = _BATCHES) -> dict[str, float]:
    """Return the microseconds of CPU a request, by what the route has: the best of many batches in turn.

    ``parameters`` are two of the query, ``dependencies`` two without any work, and ``router`` is one router
    with one route that is asked before the route's own.
    """
    return asyncio.run(_measure(batches))


async def _measure(batches: int) -> dict[str, float]:
    apps = {
        "": _make(_plain),
        "parameters": _make(_with_parameters),
        "dependencies": _make(_with_dependencies),
        "router": _make(_plain, routers=_ROUTERS),
    }
    best = dict.fromkeys(apps, float("inf"))
    for _ in range(batches):
        for name, app in apps.items():
            started = time.process_time()
            for _ in range(_BATCH):
                await app(dict(_SCOPE), _receive, _send)
            best[name] = min(best[name], time.process_time() - started)
    more = {name: (best[name] - best[""]) / _BATCH * 1e6 for name in apps if name}
    return {**more, "router": more["router"] / _ROUTERS}


def _make(handler: Any, routers: int = 0) -> FastAPI:  # noqa: ANN401 - any signature
    app = FastAPI()
    for number in range(routers):
        before = APIRouter()
        before.add_api_route(f"/other-{number}", _plain)
        app.include_router(before)
    app.add_api_route("/data", handler)
    return app


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:  # noqa: ANN401 - as ASGI has it
    if message.get("status", 200) != 200:
        raise RuntimeError(f"expected status 200, got {message['status']}")
