"""The same wait on BlackSheep, in plain ``uvicorn``."""

import asyncio
import os

from blacksheep import Application, get

SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))
app = Application()


@get("/async-task")
async def async_task() -> dict[str, str]:
    await asyncio.sleep(SECONDS)
    return {"message": "Task Complete"}
