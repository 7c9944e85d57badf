"""procrastinate: tasks in PostgreSQL, over psycopg."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from procrastinate import App, PsycopgConnector
from procrastinate.tasks import Task
from procrastinate.types import JSONDict

from bench.peers.tasks import CONCURRENCY, main, running, runs


class Procrastinate:
    def __init__(self, app: App, noop: Task[[int], Any, Any]) -> None:
        self.app = app
        self.noop = noop

    async def start_many(self, numbers: Sequence[int]) -> None:
        payloads: list[JSONDict] = [{"number": number} for number in numbers]
        await self.noop.batch_defer_async(*payloads)

    async def start(self, number: int) -> None:
        await self.noop.defer_async(number=number)

    def work(self) -> AbstractAsyncContextManager[None]:
        return running(self.app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False))


@asynccontextmanager
async def open_engine() -> AsyncIterator[Procrastinate]:
    address = f"host={os.environ['BENCH_SOCKET']} user=postgres dbname=freeloop"
    app = App(connector=PsycopgConnector(conninfo=address))

    @app.task(name="noop")
    async def noop(number: int) -> None:
        runs.note(number)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield Procrastinate(app, noop)


if __name__ == "__main__":
    main(open_engine)
