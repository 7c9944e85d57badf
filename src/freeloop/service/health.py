"""For those who run the service: is it alive, can it serve, what does it count."""

from __future__ import annotations

from typing import Annotated, Final, Literal, cast

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from freeloop.errors import Unavailable
from freeloop.gate.problems import responses
from freeloop.metrics import Metrics
from freeloop.service.dependencies import Db, require_token

router = APIRouter(tags=["health"])
_CHECK_TIMEOUT: Final = 2.0


class Status(BaseModel):
    """What a probe asks for."""

    status: Literal["ok"]


async def _metrics(request: Request) -> Metrics:
    return cast("Metrics", request.state.metrics)


@router.get("/livez", responses=responses())
async def livez() -> Status:
    """Say that the loop runs. Fails only by not answering: a broken database is no reason to restart."""
    return Status(status="ok")


@router.get("/readyz", responses=responses())
async def readyz(request: Request, database: Db) -> Status:
    """Say whether requests can be served: not while shutting down, and not without the database.

    The check takes at most 2 s; 503 gives the reason.
    """
    if request.state.draining.is_set():
        raise Unavailable("the service is shutting down; send requests elsewhere", retry_after=5)
    await database.check(timeout=_CHECK_TIMEOUT)
    return Status(status="ok")


@router.get(
    "/metrics",
    dependencies=[Depends(require_token)],
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
        **responses(401),
    },
)
async def metrics(registry: Annotated[Metrics, Depends(_metrics)]) -> Response:
    """Show the metrics in Prometheus' text format."""
    return Response(registry.render(), media_type=CONTENT_TYPE_LATEST)
