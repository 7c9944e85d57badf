"""pgqueuer by itself, the engine below ours: a job is a name and bytes, and gone when it has ended."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from bench.peers.items import URL
from bench.peers.tasks import main, running, runs

BATCH = 100


class Bare:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.queries = Queries(AsyncpgPoolDriver(pool))

    async def start_many(self, numbers: Sequence[int]) -> None:
        count = len(numbers)
        await self.queries.enqueue(["noop"] * count, [b"%d" % number for number in numbers], [0] * count)

    async def start(self, number: int) -> None:
        await self.queries.enqueue("noop", b"%d" % number)

    def work(self) -> AbstractAsyncContextManager[None]:
        queuer = PgQueuer(AsyncpgPoolDriver(self.pool))

        @queuer.entrypoint("noop")
        async def noop(job: Job) -> None:
            runs.note(int(job.payload or b""))

        work = queuer.qm.run(batch_size=BATCH, dequeue_timeout=timedelta(seconds=1))
        return running(work, lambda _: queuer.qm.shutdown.set())


@asynccontextmanager
async def open_engine() -> AsyncIterator[Bare]:
    host = os.environ["BENCH_SOCKET"]
    connection = await asyncpg.connect(URL, host=host)
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()
    async with asyncpg.create_pool(URL, host=host) as pool:
        yield Bare(pool)


if __name__ == "__main__":
    main(open_engine)
