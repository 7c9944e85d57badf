"""One query again and again in one process, by ours and by bare asyncpg in turn; prints JSON."""

import json
import sys
import time
from collections.abc import Awaitable, Callable

import asyncpg
import uvloop

from bench.peers.items import PAGE, SOCKET, URL, keep_session
from freeloop.database import Address, Database
from freeloop.scope import Scope

ROWS = 20
Fetch = Callable[[str, int, int], Awaitable[list[asyncpg.Record]]]


async def measure(fetch: Fetch, count: int) -> tuple[float, float]:
    """Return the seconds and the seconds of CPU time that each of ``count`` queries takes."""
    started, used = time.perf_counter(), time.process_time()
    for number in range(count):
        rows = await fetch(PAGE, number % 64 * ROWS, ROWS)
        assert len(rows) == ROWS
    return (time.perf_counter() - started) / count, (time.process_time() - used) / count


async def main(slices: int, count: int) -> None:
    host, database = SOCKET, Database(Address(host=SOCKET, user="postgres", database="freeloop"))
    scope = Scope("fetch-loop", route="/items", seconds=600.0)
    connection = await asyncpg.connect(URL, host=host)
    async with (
        asyncpg.create_pool(URL, host=host, min_size=1) as pool,
        asyncpg.create_pool(URL, host=host, min_size=1, reset=keep_session) as lasting,
    ):
        await database.open()
        # As in a request: with a deadline to keep, and a place to remember.
        scope.enter()
        ways: dict[str, Fetch] = {
            "connection": connection.fetch,
            "pool": pool.fetch,
            "lasting pool": lasting.fetch,
            "ours": database.fetch,
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(-1, slices):
            names = list(ways)
            first = number % len(names)
            for name in [*names[first:], *names[:first]]:
                one = await measure(ways[name], count)
                if number >= 0:  # the first round warms up
                    taken[name].append(one)
        await database.close()
    await connection.close()
    print(json.dumps(taken))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
