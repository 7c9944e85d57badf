"""The same in plain FastAPI, by somebody who knows pgqueuer and asyncpg."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Request, Response
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from bench.peers.items import SOCKET, URL, keep_session


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(URL, host=SOCKET, reset=keep_session) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=connect)


@app.post("/orders", status_code=202)
async def order(request: Request, response: Response) -> dict[str, str]:
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        number = await connection.fetchval("insert into orders (what) values ('bread') returning id")
        (job,) = await Queries(AsyncpgDriver(connection)).enqueue("work", b"%d" % number)
    response.headers["location"] = f"/tasks/{job}"
    return {"task": str(job)}
