"""The tutorial's way: a new ``httpx.AsyncClient`` for each request."""

import os

import httpx
from fastapi import FastAPI

URL = os.environ["BENCH_UPSTREAM"]
app = FastAPI()


@app.get("/fetch-data")
async def fetch_data() -> object:
    async with httpx.AsyncClient() as client:
        response = await client.get(URL)
    return {"data": response.json()}
