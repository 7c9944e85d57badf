"""Bare asyncpg in Litestar: its pool as it comes, and Litestar's own encoder (msgspec)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

import asyncpg
from litestar import Litestar, get
from litestar.datastructures import State

from bench.peers.items import PAGE, SOCKET, URL


@asynccontextmanager
async def connect(app: Litestar) -> AsyncIterator[None]:
    async with asyncpg.create_pool(URL, host=SOCKET) as pool:
        app.state.pool = pool
        yield


@get("/items")
async def items(state: State, limit: int = 50, after: int = 0) -> list[dict[str, object]]:
    return [dict(row) for row in await state.pool.fetch(PAGE, after, limit)]


app = Litestar([items], lifespan=[connect], openapi_config=None, type_encoders={Decimal: str})
