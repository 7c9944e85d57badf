"""Waiting without blocking, and blocking without harm: the two-second operation in both kinds."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from freeloop.gate.problems import responses
from freeloop.service.dependencies import Threads

router = APIRouter(tags=["waiting"])

Seconds = Annotated[
    float, Query(ge=0, le=60, allow_inf_nan=False, description="How long the operation takes, in seconds.")
]


class Done(BaseModel):
    """The operation has ended."""

    message: str


@router.get("/async-task", response_model=Done, responses=responses())
async def async_task(seconds: Seconds = 2.0) -> Done:
    """Await a simulated I/O operation; meanwhile every other request is served at once."""
    await asyncio.sleep(seconds)
    return Done(message="Task Complete")


@router.get("/sync-task", response_model=Done, responses=responses())
async def sync_task(threads: Threads, seconds: Seconds = 2.0) -> Done:
    """Run the same operation as a sync function, in a thread of a pool with a limit of its own."""
    return await threads.run(sync_operation, seconds)


def sync_operation(seconds: float) -> Done:
    """Block the calling thread for ``seconds``, as a sync driver or library would."""
    time.sleep(seconds)
    return Done(message="Sync Operation Complete")
