"""Starts tasks, each in one transaction with a row that says so, until there are enough; may be killed."""

import asyncio
import sys

import asyncpg
from task_processes import opened
from tasks_app import kit, write_once

from freeloop.database import Address
from freeloop.errors import FreeloopError

BATCH = 20
PAUSE = 0.1  # seconds: long enough for much to be killed meanwhile


async def main(total):
    async with opened(Address(dsn=kit.settings.database_url.get_secret_value())) as tasks:
        while True:
            try:
                # Read again each time: whether a commit whose answer was lost has taken place is not known.
                first = await tasks.database.fetch_value("select coalesce(max(n) + 1, 0) from starts")
                if first >= total:
                    return
                await start(tasks, first, min(total, first + BATCH))
                await asyncio.sleep(PAUSE)
            except (FreeloopError, OSError, asyncpg.PostgresError) as error:
                sys.stderr.write(f"the starter tries again: {error}\n")
                await asyncio.sleep(0.1)


async def start(tasks, first, last):
    async with tasks.database.transaction() as transaction:
        handles = await tasks.start_many([write_once.bind(n) for n in range(first, last)], in_=transaction)
        await transaction.execute_many(
            "insert into starts (n, task) values ($1, $2)",
            [(n, handle.id) for n, handle in zip(range(first, last), handles, strict=True)],
        )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
