"""Waiting without blocking, and blocking without harm: the two-second operation in both kinds."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from freeloop.dependencies import Kit
from freeloop.gate.declare import deadline
from freeloop.gate.problems import responses

router = APIRouter(tags=["waiting"])
_LONGEST = 60  # seconds

Seconds = Annotated[
    float,
    Query(ge=0, le=_LONGEST, allow_inf_nan=False, description="How long the operation takes, in seconds."),
]


class Done(BaseModel):
    """The operation has ended."""

    message: str


@router.get("/async-task", response_model=Done, responses=responses())
@deadline(_LONGEST + 10)
async def async_task(seconds: Seconds = 2.0) -> Done:
    """Await a simulated I/O operation; meanwhile every other request is served at once."""
    await asyncio.sleep(seconds)
    return Done(message="Task Complete")


@router.get("/sync-task", response_model=Done, responses=responses())
@deadline(_LONGEST + 20)  # it may wait for a thread first
async def sync_task(kit: Kit, seconds: Seconds = 2.0) -> Done:
    """Run the same operation as a sync function, in a thread, of which there is a limited number."""
    return await kit.run_sync(sync_operation, seconds)


def sync_operation(seconds: float) -> Done:
    """Block the calling thread for ``seconds``, as a sync driver or library would."""
    time.sleep(seconds)
    return Done(message="Sync Operation Complete")
