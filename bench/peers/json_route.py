"""A plain FastAPI app with one JSON route and one that sleeps; the same file for uvicorn and for ours."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))


@asynccontextmanager
async def settle_memory(_: FastAPI) -> AsyncIterator[None]:
    """Do with the garbage collector what ours does at its start: who knows the trick may have it alone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    yield


app = FastAPI(lifespan=settle_memory if os.environ.get("BENCH_SETTLE_MEMORY") else None)


@app.get("/item")
async def item() -> dict[str, str | int]:
    return {"id": 1, "name": "spanner", "unit": "piece", "stock": 12}


@app.get("/wait")
async def wait() -> dict[str, str]:
    await asyncio.sleep(SECONDS)
    return {"message": "Task Complete"}
