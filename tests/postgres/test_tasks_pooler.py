"""Tasks behind a pooler in transaction mode: without LISTEN they are looked for; with a direct way, heard."""

import asyncio
import logging
from dataclasses import replace

import pytest

from freeloop.database import Database
from freeloop.database.migrations import migrate
from freeloop.errors import TaskCancelled
from freeloop.tasks import Tasks, progress
from freeloop.tasks.pgqueuer_engine import PgQueuerEngine
from freeloop.tasks.schema import TASKS, TASKS_SCHEMA
from freeloop.testing import eventually
from task_rooms import declare, worker

WITHIN = 10.0


@pytest.mark.parametrize("direct", [False, True], ids=["looked for", "heard"])
async def test_tasks_run_and_are_cancelled_behind_a_pooler(bouncer, address, caplog, direct):
    await migrate(address, TASKS, schema=TASKS_SCHEMA)
    pooled = bouncer.address(address)
    if direct:
        pooled = replace(pooled, direct=address)
    tasks = Tasks()
    running = asyncio.Event()

    @declare(tasks)
    async def add(a: int, b: int) -> int:
        progress(1)
        return a + b

    @declare(tasks)
    async def sleep() -> None:
        running.set()
        await asyncio.sleep(60)

    with caplog.at_level(logging.WARNING, "freeloop.tasks"):
        async with (
            Database(pooled, name="pooled") as database,
            tasks.open(database, PgQueuerEngine()),
            worker(tasks, heartbeat_timeout=300 if direct else 2),
        ):
            if direct:
                await eventually(lambda: tasks.signals.heard)
            else:
                await eventually(lambda: "tasks are looked for twice a second" in caplog.text)
                assert "FREELOOP_DATABASE_DIRECT_URL" in caplog.text
            handles = await tasks.start_many([add.bind(n, 1) for n in range(20)])
            results = await asyncio.gather(*(handle.result(timeout=WITHIN) for handle in handles))
            assert results == list(range(1, 21))
            handle = await tasks.start(sleep)
            await running.wait()
            await handle.cancel()
            with pytest.raises(TaskCancelled):
                await handle.result(timeout=2)
    assert ("looked for" in caplog.text) is not direct
