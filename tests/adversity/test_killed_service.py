"""The service is killed, and its PostgreSQL is killed: nothing acknowledged is lost, and it recovers."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import aiohttp


async def test_kill_9_in_the_middle_of_writes_loses_no_acknowledged_one(start):
    service = await asyncio.to_thread(start)
    url = await asyncio.to_thread(lambda: service.url)
    acknowledged = []
    enough = asyncio.Event()

    async def write(client, number):
        async with client.post("/items", json={"name": f"kill-{number}", "price": "1.00"}) as answer:
            assert answer.status == 201
            acknowledged.append((await answer.json())["id"])
            if len(acknowledged) == 100:
                enough.set()

    async with aiohttp.ClientSession(url) as client:
        writes = [asyncio.create_task(write(client, number)) for number in range(200)]
        async with asyncio.timeout(30):
            await enough.wait()
        service.process.kill()
        await asyncio.to_thread(service.wait)
        ended = await asyncio.gather(*writes, return_exceptions=True)
    assert any(isinstance(error, aiohttp.ClientError) for error in ended)

    again = await asyncio.to_thread(start)
    async with aiohttp.ClientSession(await asyncio.to_thread(lambda: again.url)) as client:
        for item in acknowledged:
            async with client.get(f"/items/{item}") as answer:
                assert answer.status == 200
    assert await asyncio.to_thread(again.stop) == 0


async def test_postgresql_killed_under_load_gives_503_and_recovers_by_itself(start, data_dir):
    service = await asyncio.to_thread(start)
    url = await asyncio.to_thread(lambda: service.url)
    statuses = []
    stop = asyncio.Event()

    async def load(client):
        while not stop.is_set():
            async with asyncio.timeout(10):
                async with client.get("/items?limit=1") as answer:
                    statuses.append(answer.status)
                    await answer.read()

    async def wait_for(condition):
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    async with aiohttp.ClientSession(url) as client:
        loads = [asyncio.create_task(load(client)) for _ in range(8)]
        await wait_for(lambda: len(statuses) > 50)
        killed = await asyncio.to_thread(kill_server, data_dir)
        async with asyncio.timeout(30):
            while await asyncio.to_thread(find_postmaster, data_dir) in {None, killed}:
                await asyncio.sleep(0.01)
        # What was under way at the kill may have failed; what comes after the recovery may not.
        since = len(statuses) + len(loads)
        await wait_for(lambda: len(statuses) > since + 50)
        stop.set()
        await asyncio.gather(*loads)
        assert set(statuses) <= {200, 503}
        assert statuses[-20:] == [200] * 20
        async with client.get("/readyz") as answer:
            assert answer.status == 200
    assert await asyncio.to_thread(service.stop) == 0


def kill_server(data_dir):
    """Kill PostgreSQL's first process and, with it, every session in the middle of its work."""
    postmaster = find_postmaster(data_dir)
    sessions = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in (postmaster, *map(int, sessions)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return postmaster


def find_postmaster(data_dir):
    pid_file = data_dir / "postgresql" / "18" / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(pid_file.read_text().splitlines()[0])
    return None
