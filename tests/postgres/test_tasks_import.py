"""The service's import in the test's own process: stopped between two batches, it goes on with the rest."""

import asyncio
from uuid import UUID

from aiohttp import web
from aiohttp.test_utils import TestServer
from kit_app import running, settings_of

from freeloop.service import tasks as service_tasks
from freeloop.service.app import create_app
from freeloop.testing import eventually

POSTS = [{"id": n, "title": f"Post {n}"} for n in range(250)]
COUNTS = "select count(*), count(distinct name) from items"
WITHIN = 20.0


async def give_posts(_):
    return web.json_response(POSTS)


async def test_an_import_is_cancelled_and_resumed_without_duplicates(address, monkeypatch):
    stored, may_go_on = asyncio.Event(), asyncio.Event()
    store = service_tasks._store

    async def store_and_wait(*arguments):
        count = await store(*arguments)
        stored.set()
        await may_go_on.wait()
        return count

    monkeypatch.setattr(service_tasks, "_store", store_and_wait)
    upstream = web.Application()
    upstream.router.add_get("/", give_posts)
    async with TestServer(upstream) as server:
        settings = settings_of(address, sources={"posts": {"url": str(server.make_url("/"))}})
        app = await asyncio.to_thread(create_app, settings)  # it reads files, as before the loop begins
        kit = app.state.freeloop
        async with running(app) as client:
            async with client.post("/tasks/import_posts") as answer:
                handle = kit.tasks.get(UUID((await answer.json())["id"]))
            async with asyncio.timeout(WITHIN):
                await stored.wait()
            assert await handle.cancel()
            await eventually(lambda: has_state(handle, "cancelled"), within=WITHIN)
            assert tuple(await kit.database.fetch_row(COUNTS)) == (100, 100)  # what was committed stays
            may_go_on.set()
            assert await kit.tasks.retry(handle.id)
            await eventually(lambda: has_state(handle, "succeeded"), within=WITHIN)
            assert (await handle.status()).result == {"found": 250, "stored": 150}
            assert tuple(await kit.database.fetch_row(COUNTS)) == (250, 250)


async def has_state(handle, state):
    return await handle.state() == state
