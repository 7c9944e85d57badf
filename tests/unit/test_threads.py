"""The thread pool: bounded, and true to its count also when callers leave."""

import asyncio
import threading

import pytest

from freeloop.errors import ThreadsBusy
from freeloop.threads import ThreadPool


async def test_it_returns_the_result_and_raises_the_error():
    pool = ThreadPool("test", size=1)
    assert await pool.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 7, 0)
    await settle(pool)
    assert await pool.run(threading.current_thread) is not threading.current_thread()


async def test_a_full_pool_refuses_in_time_and_says_how_full_it_is():
    pool = ThreadPool("test", size=1, acquire_timeout=0.05)
    hold = threading.Event()
    busy = asyncio.create_task(pool.run(hold.wait))
    while not pool.in_use:
        await asyncio.sleep(0)
    with pytest.raises(ThreadsBusy, match=r"'test' came free within 0\.05 s \(1 of 1 busy\)"):
        await pool.run(hold.wait)
    hold.set()
    await busy
    await settle(pool)


async def test_an_abandoned_call_counts_until_it_returns():
    pool = ThreadPool("test", size=1, acquire_timeout=5)
    begun, hold = threading.Event(), threading.Event()

    def work():
        begun.set()
        hold.wait()

    caller = asyncio.create_task(pool.run(work))
    await asyncio.to_thread(begun.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert pool.in_use == 1
    hold.set()
    await pool.run(int)
    await settle(pool)


async def test_cancelled_callers_leak_no_place():
    pool = ThreadPool("test", size=3, acquire_timeout=5)
    for round_ in range(200):
        callers = [asyncio.create_task(pool.run(int)) for _ in range(6)]
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    await settle(pool)
    assert await asyncio.gather(*(pool.run(int) for _ in range(6))) == [0] * 6


async def settle(pool):
    async with asyncio.timeout(5):
        while pool.in_use:
            await asyncio.sleep(0.001)
