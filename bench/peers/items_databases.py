"""The tutorial's way: the `databases` library, ``SELECT *``, and FastAPI's encoder for what comes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from databases import Database
from fastapi import FastAPI

from bench.peers.items import SOCKET, URL

database = Database(URL, host=SOCKET)


@asynccontextmanager
async def connect(_: FastAPI) -> AsyncIterator[None]:
    await database.connect()
    yield
    await database.disconnect()


app = FastAPI(lifespan=connect)


@app.get("/items", response_model=None)  # what the annotation says would be a model otherwise
async def items() -> list[object]:
    return await database.fetch_all("SELECT * FROM plain_items LIMIT 20")  # type: ignore[return-value]
