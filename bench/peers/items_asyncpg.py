"""Bare asyncpg in plain FastAPI: its pool as it comes, which resets each connection that is given back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Request

from bench.peers.items import PAGE, SOCKET, URL


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(URL, host=SOCKET) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=connect)


@app.get("/items", response_model=None)  # what the annotation says would be a model otherwise
async def items(request: Request, limit: int = 50, after: int = 0) -> list[dict[str, object]]:
    return [dict(row) for row in await request.app.state.pool.fetch(PAGE, after, limit)]
