"""arq: tasks in Redis, which is another system beside the database; a worker asks it twice a second."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker

from bench.peers.tasks import CONCURRENCY, main, running, runs

_SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_REDIS"])


async def noop(_: dict[str, Any], number: int) -> None:
    runs.note(number)


class Arq:
    def __init__(self, client: ArqRedis) -> None:
        self.client = client

    async def start_many(self, numbers: Sequence[int]) -> None:
        await asyncio.gather(*map(self.start, numbers))  # it has no way for many

    async def start(self, number: int) -> None:
        await self.client.enqueue_job("noop", number)

    def work(self) -> AbstractAsyncContextManager[None]:
        worker = Worker(
            [func(noop, name="noop")],
            redis_settings=_SETTINGS,
            max_jobs=CONCURRENCY,
            handle_signals=False,
        )
        return running(worker.async_run())


@asynccontextmanager
async def open_engine() -> AsyncIterator[Arq]:
    client = await create_pool(_SETTINGS)
    try:
        yield Arq(client)
    finally:
        await client.aclose()


if __name__ == "__main__":
    main(open_engine)
