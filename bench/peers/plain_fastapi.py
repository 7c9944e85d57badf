"""The tutorial's app: ``async def`` and ``asyncio.sleep``, for plain ``uvicorn``.

The wait comes from the environment and not from a query parameter, so that the peer pays for no validation.
"""

import asyncio
import os

from fastapi import FastAPI

SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))
app = FastAPI()


@app.get("/async-task")
async def async_task() -> dict[str, str]:
    await asyncio.sleep(SECONDS)
    return {"message": "Task Complete"}
