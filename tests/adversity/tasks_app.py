"""An app whose tasks leave traces in the database: who ran them, from when to when, and what they wrote."""

import asyncio
import os
import time

from fastapi import FastAPI

from freeloop import Freeloop
from freeloop.tasks import complete, current_execution, progress

app = FastAPI()
kit = Freeloop(app, database=True)


if folder := os.environ.get("TEST_TRACES"):
    # One write a line: what a process that is killed has written stays.
    traces = os.open(f"{folder}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def trace(execution, call_next):
        """Write when each execution begins and ends, past the database, which may be away."""
        os.write(traces, f"{execution.task_id} {execution.attempt} begin {time.time()}\n".encode())
        try:
            return await call_next()
        finally:
            os.write(traces, f"{execution.task_id} {execution.attempt} end {time.time()}\n".encode())

    kit.tasks.middleware.append(trace)


async def enter(database, mark):
    """Note that an execution begins; return what notes its end."""
    run = await database.fetch_value(
        "insert into runs (task, pid, mark) values ($1, $2, $3) returning id",
        current_execution().task_id,
        os.getpid(),
        mark,
    )
    return lambda: database.execute("update runs set ended = clock_timestamp() where id = $1", run)


@kit.task(timeout=None)
async def sleep(seconds: float) -> int:
    leave = await enter(kit.database, "sleep")
    await asyncio.sleep(seconds)
    await leave()
    return os.getpid()


@kit.task(timeout=None)
async def block_the_loop(seconds: float) -> int:
    """As a library does that has no async interface, in the middle of an async function."""
    await enter(kit.database, "block")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
    return os.getpid()


@kit.task(timeout=None)
def compute(seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100_000))
    return os.getpid()


@kit.task(timeout=None)
async def kill_me() -> None:
    os.kill(os.getpid(), 9)


@kit.task(retries=None, backoff=0.05, longest_backoff=0.5)
async def write_once(n: int) -> int:
    """One row for each task, whatever is killed when: the row and the task's end are one transaction."""
    progress(n)
    await asyncio.sleep(n % 7 * 0.005)
    async with kit.database.transaction() as transaction:
        await transaction.execute(
            "insert into effects (n, task) values ($1, $2)", n, current_execution().task_id
        )
        await complete(n, in_=transaction)
    return n
