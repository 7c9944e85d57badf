"""Plain FastAPI by somebody who knows all of it: no reset, and JSON that PostgreSQL makes, sent as it comes.

It does for a single read what ours does, with no gate around it and nothing shared.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Request, Response

from bench.peers.items import SOCKET, URL, keep_session


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(URL, host=SOCKET, reset=keep_session) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=connect)


@app.get("/items")
async def items(request: Request, limit: int = 50, after: int = 0) -> Response:
    rows = await request.app.state.pool.fetch(
        "SELECT document_of(items)::text FROM items WHERE id > $1 ORDER BY id LIMIT $2", after, limit
    )
    return Response(f"[{','.join([row[0] for row in rows])}]", media_type="application/json")
