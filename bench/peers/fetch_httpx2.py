"""One httpx2 client for all requests, with its own limit of 100 connections."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from fastapi import FastAPI, Request

URL = os.environ["BENCH_UPSTREAM"]


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[None]:
    async with httpx2.AsyncClient() as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=connect)


@app.get("/fetch-data")
async def fetch_data(request: Request) -> object:
    response = await request.app.state.client.get(URL)
    return {"data": response.json()}
