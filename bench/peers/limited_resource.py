"""A handler with 100 ms of work on a resource that ten requests can use at once: 100 requests a second."""

import asyncio

from fastapi import FastAPI

PLACES = 10
SECONDS = 0.1
app = FastAPI()
resource = asyncio.Semaphore(PLACES)


@app.get("/work")
async def work() -> dict[str, str]:
    async with resource:
        await asyncio.sleep(SECONDS)
    return {"message": "Task Complete"}


@app.get("/livez")
async def livez() -> dict[str, str]:
    return {"status": "ok"}
