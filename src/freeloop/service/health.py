"""For those who run the service: is it alive, can it serve, what does it count."""

from __future__ import annotations

from typing import Final, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from freeloop.dependencies import Db, Kit
from freeloop.gate.problems import responses
from freeloop.service.dependencies import require_token

router = APIRouter(tags=["health"])
_CHECK_TIMEOUT: Final = 2.0


class Status(BaseModel):
    """What a probe asks for."""

    status: Literal["ok"]


@router.get("/livez", responses=responses())
async def livez() -> Status:
    """Say that the loop runs. Fails only by not answering: a broken database is no reason to restart."""
    return Status(status="ok")


@router.get("/readyz", responses=responses())
async def readyz(database: Db) -> Status:
    """Say whether requests can be served: not while shutting down, and not without the database.

    The check takes at most 2 s; 503 gives the reason.
    """
    # During the drain the gate answers this path.
    await database.check(timeout=_CHECK_TIMEOUT)
    return Status(status="ok")


@router.get(
    "/metrics",
    dependencies=[require_token],
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
        **responses(401),
    },
)
async def metrics(kit: Kit) -> Response:
    """Show the metrics in Prometheus' text format."""
    return Response(kit.metrics.render(), media_type=CONTENT_TYPE_LATEST)
