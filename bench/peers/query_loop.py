"""One query again and again in one process, each way of asking in turn; prints JSON.

Once the rows as they are, by ours and by bare asyncpg; once as JSON, by the three ways there are to make it.
"""

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sized
from datetime import datetime
from decimal import Decimal

import asyncpg
import orjson
import uvloop
from pydantic import BaseModel, TypeAdapter

from bench.cases import rotate
from bench.family import read_peak
from bench.peers.items import PAGE, SOCKET, URL, keep_session
from freeloop.database import Address, Database
from freeloop.scope import Scope

Ask = Callable[[int, int], Awaitable[Sized]]
"""Asks for so many rows behind an id."""

Taken = dict[str, list[tuple[float, float]]]
"""The seconds and the seconds of CPU time that a query takes, slice by slice, for each way."""


class Item(BaseModel):
    id: int
    name: str
    description: str | None
    price: Decimal
    tags: list[str]
    created_at: datetime
    updated_at: datetime


ITEMS = TypeAdapter(list[Item])


async def measure(ask: Ask, rows: int, count: int) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    for number in range(count):
        assert await ask(number % 64 * 20, rows)
    return (time.perf_counter() - started) / count, (time.process_time() - used) / count


async def take_turns(ways: dict[str, Ask], rows: int, slices: int, count: int) -> Taken:
    taken: Taken = {name: [] for name in ways}
    for number in range(-1, slices):
        for name in rotate(list(ways), number):
            one = await measure(ways[name], rows, count)
            if number >= 0:  # the first round warms up
                taken[name].append(one)
    return taken


async def main(slices: int, count: int) -> None:
    host, database = SOCKET, Database(Address(host=SOCKET, user="postgres", database="freeloop"))
    scope = Scope("fetch-loop", route="/items", seconds=600.0)
    connection = await asyncpg.connect(URL, host=host)

    async def render(after: int, rows: int) -> bytes:
        return await database.fetch_json(PAGE, after, rows)

    async def dump(after: int, rows: int) -> bytes:
        return orjson.dumps([dict(row) for row in await database.fetch(PAGE, after, rows)], default=str)

    async def validate(after: int, rows: int) -> bytes:
        return ITEMS.dump_json(await database.fetch(PAGE, after, rows, into=Item))

    async with (
        asyncpg.create_pool(URL, host=host, min_size=1) as pool,
        asyncpg.create_pool(URL, host=host, min_size=1, reset=keep_session) as lasting,
    ):
        await database.open()
        # As in a request: with a deadline to keep, and a place to remember.
        scope.enter()

        ways: dict[str, Ask] = {
            "connection": lambda *args: connection.fetch(PAGE, *args),
            "pool": lambda *args: pool.fetch(PAGE, *args),
            "lasting pool": lambda *args: lasting.fetch(PAGE, *args),
            "ours": lambda *args: database.fetch(PAGE, *args),
        }
        taken = {"rows": await take_turns(ways, 20, slices, count)}
        ways = {"PostgreSQL": render, "orjson": dump, "Pydantic": validate}
        for rows in (20, 200):
            taken[f"JSON of {rows}"] = await take_turns(ways, rows, slices // 2, count * 4 // rows)
        await database.close()
    await connection.close()
    print(json.dumps({"taken": taken, "peak_mb": read_peak(os.getpid()) / 1e6}))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
