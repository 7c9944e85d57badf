"""Requests that wait for each other, and one that hangs the loop. The environment may ask for a kit."""

import asyncio
import os
import time

from fastapi import FastAPI

from freeloop import Freeloop

app = FastAPI(title="Waiting room")
lock, other = asyncio.Lock(), asyncio.Lock()
both = asyncio.Barrier(2)

if os.environ.get("WITH_KIT"):
    Freeloop(app)


@app.get("/wait/{number}")
async def wait(number: int):
    async with lock:
        await asyncio.sleep(60)  # sleep


@app.get("/first")
async def first():
    async with lock:
        await both.wait()
        async with other:  # wants the other
            pass


@app.get("/second")
async def second():
    async with other:
        await both.wait()
        async with lock:  # wants the lock
            pass


@app.get("/hang")
async def hang():
    time.sleep(30)  # noqa: ASYNC251 - hang
