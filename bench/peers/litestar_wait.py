"""The same wait on Litestar, in plain ``uvicorn``."""

import asyncio
import os

from litestar import Litestar, get

SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))


@get("/async-task")
async def async_task() -> dict[str, str]:
    await asyncio.sleep(SECONDS)
    return {"message": "Task Complete"}


app = Litestar([async_task], openapi_config=None)
