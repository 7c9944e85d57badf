"""Both sides of the migration page do what it says, against the same API and the same PostgreSQL."""

import asyncio
import contextlib
import time

import aiohttp
import pytest
from fastapi import FastAPI

from blocks import DOCS, read_blocks
from freeloop import Freeloop
from freeloop.service.sample import SampleApi
from freeloop.settings import Settings
from run_process import Processes
from serving import soon

PAGE = DOCS / "from-the-tutorial.md"


@pytest.fixture(scope="module")
def apps(tmp_path_factory):
    """A folder with every app of the page."""
    folder = tmp_path_factory.mktemp("apps")
    for block in read_blocks(PAGE):
        if block.title:
            (folder / block.title).write_text(block.text, "utf-8")
    return folder


@pytest.fixture
def processes():  # not async: to end them blocks
    with Processes() as processes:
        yield processes


@pytest.fixture
async def serve(apps, processes):
    """Start an app of the page as it is started; return what sends it requests at once."""
    async with contextlib.AsyncExitStack() as clients:

        async def serve(name, **environment):
            command = processes.uvicorn if name.endswith("before") else processes.freeloop
            port = await asyncio.to_thread(lambda: command(f"{name}:app", cwd=apps, **environment).port)
            session = await clients.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}"))

            async def get(path):
                async with session.get(path) as answer:
                    return answer.status, await answer.json()

            async def ask(*paths):
                return await soon(asyncio.gather(*map(get, paths)), 30)

            return ask

        yield serve


def replace(path, old, new):
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


async def timed(awaitable):
    started = time.monotonic()
    return await awaitable, time.monotonic() - started


@pytest.mark.parametrize("side", ["before", "after"])
async def test_waiting_requests_wait_together(serve, side):
    ask = await serve(f"waiting_{side}")
    answers, seconds = await timed(ask(*["/async-task"] * 20))
    assert answers == [(200, {"message": "Task Complete"})] * 20
    assert seconds < 10  # one after the other, they take 40


@pytest.mark.parametrize(
    ("side", "third", "together"), [("before", "/mistake", False), ("after", "/no-mistake", True)]
)
async def test_the_functions_answer_the_same_and_only_the_mistake_stops_others(serve, side, third, together):
    ask = await serve(f"functions_{side}")
    answers = await ask("/sync", "/async", third)
    assert [body["message"].split()[0] for _, body in answers] == ["Sync", "Async", "Sync"]
    _, seconds = await timed(ask(*[third] * 5))
    assert (seconds < 4) is together  # one second each


@pytest.mark.parametrize("side", ["before", "after"])
async def test_the_api_is_fetched(serve, apps, side):
    async with SampleApi() as api:
        base = api.sources["posts"].removesuffix("/posts")
        await asyncio.to_thread(
            replace, apps / f"fetching_{side}.py", "https://jsonplaceholder.typicode.com", base
        )
        ask = await serve(f"fetching_{side}")
        ((status, body),) = await ask("/fetch-data")
    assert status == 200
    assert body["data"][0]["title"] == "Notes on bread"


@pytest.mark.parametrize("side", ["before", "after"])
async def test_the_table_is_read(serve, database, address, side):
    await database.execute("insert into items (name, price) values ('Lamp', 12.5)")
    url = f"postgresql://{address.user}@/{address.database}?host={address.host}"
    ask = await serve(f"table_{side}", DATABASE_URL=url, FREELOOP_DATABASE_URL=url)
    ((status, body),) = await ask("/items")
    assert status == 200
    assert [(item["id"], item["name"]) for item in body] == [(1, "Lamp")]


async def test_the_kit_is_open_while_the_events_of_the_app_run():
    app = FastAPI()
    kit = Freeloop(app, settings=Settings(_env_file=None))
    seen = []
    for event in ("startup", "shutdown"):
        with pytest.warns(DeprecationWarning, match="on_event"):
            app.on_event(event)(lambda event=event: seen.append((event, kit.outbound)))
    async with app.router.lifespan_context(app):
        client = kit.outbound
        assert seen == [("startup", client)]
    assert seen == [("startup", client), ("shutdown", client)]
    with pytest.raises(RuntimeError):
        _ = kit.outbound
