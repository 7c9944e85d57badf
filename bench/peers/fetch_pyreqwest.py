"""One pyreqwest client (Rust's reqwest) for all requests."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pyreqwest.client import ClientBuilder

URL = os.environ["BENCH_UPSTREAM"]


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[None]:
    async with ClientBuilder().build() as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=connect)


@app.get("/fetch-data")
async def fetch_data(request: Request) -> object:
    response = await request.app.state.client.get(URL).build().send()
    return {"data": await response.json()}
