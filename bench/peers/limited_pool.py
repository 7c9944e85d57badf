"""The same 100 ms of work, by PostgreSQL on a pool of ten connections; for ours only, which brings both."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request

from freeloop.database import Database
from freeloop.database.embedded import EmbeddedServer

PLACES = 10
SECONDS = 0.1


@asynccontextmanager
async def open_pool(app: FastAPI) -> AsyncIterator[None]:
    server = EmbeddedServer(Path(os.environ["FREELOOP_DATA_DIR"]))
    database = Database(await server.start(), size=PLACES, server=server)
    try:
        await database.open()
        app.state.database = database
        yield
    finally:
        await database.close()
        await server.close()


app = FastAPI(lifespan=open_pool)


@app.get("/work")
async def work(request: Request) -> dict[str, str]:
    await request.app.state.database.execute("SELECT pg_sleep($1)", SECONDS)
    return {"message": "Task Complete"}


@app.get("/livez")
async def livez() -> dict[str, str]:
    return {"status": "ok"}
