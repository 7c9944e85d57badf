"""Our tasks: typed, with a row of ours for each that stays when it has ended."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from bench.peers.tasks import CONCURRENCY, main, runs
from freeloop.database import Address, Database
from freeloop.database.migrations import migrate
from freeloop.tasks import RetryPolicy, Task, Tasks
from freeloop.tasks.declare import Options, TaskDecorator
from freeloop.tasks.pgqueuer_engine import PgQueuerEngine
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.tasks.worker import Worker


class Freeloop:
    def __init__(self, tasks: Tasks, noop: Task[[int], None]) -> None:
        self.tasks = tasks
        self.noop = noop

    async def start_many(self, numbers: Sequence[int]) -> None:
        await self.tasks.start_many([self.noop.bind(number) for number in numbers])

    async def start(self, number: int) -> None:
        await self.tasks.start(self.noop, number)

    def work(self) -> AbstractAsyncContextManager[object]:
        return Worker(self.tasks, concurrency=CONCURRENCY)


@asynccontextmanager
async def open_engine() -> AsyncIterator[Freeloop]:
    address = Address(host=os.environ["BENCH_SOCKET"], user="postgres", database="freeloop")
    await migrate(address, TASKS, schema=TASKS_SCHEMA)
    tasks = Tasks()

    async def noop(number: int) -> None:
        runs.note(number)

    declared = TaskDecorator(tasks, None, Options(retry=RetryPolicy()))(noop)
    async with Database(address) as database, tasks.open(database, PgQueuerEngine()):
        yield Freeloop(tasks, declared)


if __name__ == "__main__":
    main(open_engine)
