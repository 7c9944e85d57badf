"""Whose request it is in an app without a kit: the frames of Starlette and FastAPI have it."""

import asyncio
import contextlib
import time

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from freeloop.watch import watch
from serving import served

pytestmark = pytest.mark.no_blocking(threshold=None)  # the watch of the app is to find it


def compute():
    end = time.thread_time() + 0.2  # twice the threshold
    while time.thread_time() < end:
        continue


@contextlib.asynccontextmanager
async def lifespan(app):
    with watch(backstop=False) as app.state.watch:
        yield


def make_fastapi():
    app, shop, admin, mounted = (
        FastAPI(lifespan=lifespan),
        APIRouter(prefix="/shop"),
        APIRouter(prefix="/admin"),
        FastAPI(),
    )

    async def show(number: int):
        compute()

    for router in (app, shop, admin, mounted):
        router.get("/items/{number}")(show)

    @app.get("/child")
    async def start_child():
        await asyncio.create_task(step())

    @app.websocket("/live/{room}")
    async def talk(websocket: WebSocket, room: str):
        await websocket.accept()
        compute()
        await websocket.close()

    @app.get("/waits")
    async def wait():
        await asyncio.sleep(0.3)

    shop.include_router(admin)
    app.include_router(shop)
    app.mount("/mounted", mounted)
    return app


async def step():
    compute()


def make_starlette():
    async def show(_request):
        compute()
        return PlainTextResponse("")

    async def wait(_request):
        await asyncio.sleep(0.3)
        return PlainTextResponse("")

    routes = [Route("/items/{number}", show), Route("/waits", wait)]
    return Starlette(
        routes=[*routes, Mount("/mounted", routes=[Route("/items/{number:int}", show)])], lifespan=lifespan
    )


@pytest.mark.parametrize(
    ("make", "path", "route"),
    [
        (make_starlette, "/items/7", "/items/{number}"),
        (make_starlette, "/mounted/items/7", "/mounted/items/{number:int}"),
        (make_fastapi, "/items/7", "/items/{number}"),
        (make_fastapi, "/shop/items/7", "/shop/items/{number}"),
        (make_fastapi, "/shop/admin/items/7", "/shop/admin/items/{number}"),
        (make_fastapi, "/mounted/items/7", "/mounted/items/{number}"),
        (make_fastapi, "/child", ""),  # nobody is better than an innocent one
    ],
)
async def test_the_route_that_blocks_is_named_and_no_other(make, path, route):
    app, root = make(), "/behind-a-proxy"
    async with served(app, lifespan="on", root_path=root) as (session, _), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask(session, "/waits"))
        found = await ask_until_found(app, lambda: ask(session, path))
    assert found.route == route
    assert found.function == "compute"


async def test_a_websocket_that_blocks_is_named():
    app = make_fastapi()
    async with served(app, lifespan="on", ws="websockets-sansio") as (session, _):
        found = await ask_until_found(app, lambda: talk_once(session))
    assert found.route == "/live/{room}"


async def ask(session, path):
    async with session.get(path) as answer:
        assert answer.status == 200


async def talk_once(session):
    async with session.ws_connect("/live/7") as socket:
        await socket.receive()


async def ask_until_found(app, ask_once):
    """Return the only finding; on a crowded machine the watchdog may miss what is as short as here."""
    async with asyncio.timeout(30):
        while not app.state.watch.findings():
            await ask_once()
            await app.state.watch.catch_up()
    (found,) = app.state.watch.findings()
    return found
