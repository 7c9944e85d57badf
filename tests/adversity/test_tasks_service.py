"""The service's own tasks, in its real process: the import, and the two-second job through a kill."""

import asyncio
import contextlib
import time
from datetime import datetime
from functools import partial

import aiohttp
import pytest

from freeloop.testing import eventually
from run_process import Processes
from service_process import make_data_dir

WITHIN = 30


@pytest.fixture
def own_data_dir():
    """A folder of its own: the service that other tests share would take the tasks."""
    with make_data_dir() as folder:
        yield folder


@pytest.fixture
async def restarting(start, own_data_dir):
    """Give a function that starts the service; the last one that it started is stopped in order."""
    services = []

    async def begin(**environment):
        services.append(await asyncio.to_thread(start, FREELOOP_DATA_DIR=str(own_data_dir), **environment))
        return services[-1], await asyncio.to_thread(lambda: services[-1].url)

    yield begin
    assert await asyncio.to_thread(services[-1].stop) == 0


async def run(client, name, body=None, **headers):
    async with client.post(f"/tasks/{name}", json=body or {}, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        return answer.headers["Location"]


async def read(client, place):
    async with client.get(place) as answer:
        assert answer.status == 200
        return await answer.json()


async def ended(client, place):
    await eventually(lambda: is_over(client, place), within=WITHIN)
    return await read(client, place)


async def is_over(client, place):
    with contextlib.suppress(aiohttp.ClientError):
        return (await read(client, place))["state"] in {"succeeded", "failed", "cancelled"}


async def test_an_import_stores_each_post_once(restarting):
    _, url = await restarting()
    async with aiohttp.ClientSession(url) as client:
        first = await ended(client, await run(client, "import_posts", {"sources": ["posts"]}))
        assert first["state"] == "succeeded", first
        assert first["result"]["found"] == 100
        assert first["progress"]["done"] == first["progress"]["total"] == 100
        again = await ended(client, await run(client, "import_posts"))
        assert again["result"]["found"] > 100  # the users too, which are no posts yet
        third = await ended(client, await run(client, "import_posts"))
        assert third["result"]["stored"] == 0
        unknown = await ended(client, await run(client, "import_posts", {"sources": ["none"]}))
        assert (unknown["state"], unknown["attempt"]) == ("failed", 1)
        assert "no source is called 'none'" in unknown["error"]["message"]


async def test_the_two_second_job_survives_a_kill(restarting):
    service, url = await restarting()
    async with aiohttp.ClientSession(url) as client:
        place = await run(client, "wait", {"seconds": 5})  # longer than the kill takes on a busy machine
        await eventually(lambda: is_running(client, place), within=WITHIN)
        service.process.kill()
        await asyncio.to_thread(service.wait)
    _, url = await restarting()
    ready = time.time()
    async with aiohttp.ClientSession(url) as client:
        done = await ended(client, place)
    assert (done["state"], done["result"]) == ("succeeded", {"message": "Task Complete"})
    assert (done["attempt"], done["losses"]) == (2, 1)
    # As it is written: whoever asks may be late. Before there was somebody to run it, no clock counts.
    assert datetime.fromisoformat(done["started_at"]).timestamp() - ready < 8


async def is_running(client, place):
    return (await read(client, place))["state"] == "running"


async def test_the_command_runs_the_tasks_of_the_service(restarting, own_data_dir):
    _, url = await restarting(FREELOOP_WORKER="none")
    async with aiohttp.ClientSession(url) as client:
        place = await run(client, "wait", {"seconds": 0})
        with Processes() as processes:
            worker = await asyncio.to_thread(
                partial(processes.command, "worker", "--service", FREELOOP_DATA_DIR=own_data_dir)
            )
            done = await ended(client, place)
            assert (done["state"], done["result"]) == ("succeeded", {"message": "Task Complete"})
            assert await asyncio.to_thread(worker.stop) == 0
