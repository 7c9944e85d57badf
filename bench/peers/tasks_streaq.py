"""streaq: tasks in Redis, which is another system beside the database."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from streaq import Worker

from bench.peers.tasks import CONCURRENCY, main, running, runs


def make_worker() -> tuple[Worker[Any], Any]:
    """Return a worker, and its task."""
    worker: Worker[Any] = Worker(redis_url=os.environ["BENCH_REDIS"], concurrency=CONCURRENCY)

    @worker.task(name="noop")
    async def noop(number: int) -> None:
        runs.note(number)

    return worker, noop


class Streaq:
    def __init__(self, client: Worker[Any], noop: Any) -> None:  # noqa: ANN401 - their type has no name
        self.client = client
        self.noop = noop

    async def start_many(self, numbers: Sequence[int]) -> None:
        await self.client.enqueue_many([self.noop.enqueue(number) for number in numbers])

    async def start(self, number: int) -> None:
        await self.noop.enqueue(number)

    def work(self) -> AbstractAsyncContextManager[None]:
        worker, _ = make_worker()
        return running(worker.run_async())


@asynccontextmanager
async def open_engine() -> AsyncIterator[Streaq]:
    client, noop = make_worker()
    async with client:
        yield Streaq(client, noop)


if __name__ == "__main__":
    main(open_engine)
