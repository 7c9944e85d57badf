"""What is measured of every engine of tasks: starts, executions, and how soon one begins."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import uvloop

from bench.family import read_peak

STARTERS = 32  # who start one by one at the same time
CONCURRENCY = 100  # what a worker runs at once
_TIMEOUT = 120.0
_PAUSE = 0.003  # s between two starts that are followed: the worker rests again


class Engine(Protocol):
    """One engine of tasks, with one task that does nothing but call :meth:`Runs.note` with its number."""

    async def start_many(self, numbers: Sequence[int]) -> None:
        """Start tasks in the way that the engine has for many."""

    async def start(self, number: int) -> None:
        """Start one task."""

    def work(self) -> AbstractAsyncContextManager[object]:
        """Run tasks, for the block."""


class Runs:
    """Who has run, and when."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.begun: dict[int, float] = {}
        self._wanted = 0
        self._reached = asyncio.Event()

    def note(self, number: int) -> None:
        """Note that a task runs; the task itself calls it."""
        self.last = self.begun[number] = time.perf_counter()
        self.count += 1
        if self.count >= self._wanted:
            self._reached.set()

    async def wait_for(self, count: int) -> None:
        """Wait until that many have run."""
        self._wanted = count
        if self.count < count:
            self._reached.clear()
            async with asyncio.timeout(_TIMEOUT):
                await self._reached.wait()


runs = Runs()


async def measure(engine: Engine, count: int, singles: int, batch: int) -> dict[str, Any]:
    """Return starts and executions a second, and the seconds from each single start to its execution.

    With the CPU time in µs of an execution, and the memory in MB that the process had at most.
    """
    began = time.perf_counter()
    for first in range(0, count, batch):
        await engine.start_many(range(first, first + batch))
    many = count / (time.perf_counter() - began)
    began, used = time.perf_counter(), time.process_time()
    async with engine.work():
        await runs.wait_for(count)
        drained, cpu = runs.last - began, time.process_time() - used
    began = time.perf_counter()
    single_starts = iter(range(count, count + singles))
    await asyncio.gather(*(_start_all(engine, single_starts) for _ in range(STARTERS)))
    single = singles / (time.perf_counter() - began)
    delays = []
    async with engine.work():
        await runs.wait_for(count + singles)
        for number in range(count + singles, count + 2 * singles):
            await asyncio.sleep(_PAUSE)
            began = time.perf_counter()
            await engine.start(number)
            await runs.wait_for(number + 1)
            delays.append(runs.begun[number] - began)
    return {
        "many": many,
        "single": single,
        "drained": count / drained,
        "cpu_us": cpu / count * 1e6,
        "peak_mb": read_peak(os.getpid()) / 1e6,
        "delays": delays,
    }


async def _start_all(engine: Engine, numbers: Iterator[int]) -> None:
    for number in numbers:  # all share it
        await engine.start(number)


@asynccontextmanager
async def running(
    work: Coroutine[Any, Any, object], stop: Callable[[asyncio.Task[object]], object] = asyncio.Task.cancel
) -> AsyncIterator[None]:
    """Have a worker run, for the block.

    Args:
        work: Runs until it is told to stop.
        stop: Tells it.
    """
    job = asyncio.create_task(work)
    try:
        yield
    finally:
        stop(job)
        await asyncio.wait([job], timeout=10)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


def main(open_engine: Callable[[], AbstractAsyncContextManager[Engine]]) -> None:
    """Measure what the command line says, and print it as JSON."""
    count, singles, batch = map(int, sys.argv[1:])

    async def run() -> dict[str, Any]:
        async with open_engine() as engine:
            return await measure(engine, count, singles, batch)

    print(json.dumps(uvloop.run(run())))
