"""The database and the outbound client that a kit gives to its app."""

import asyncio
import re
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from fastapi import FastAPI, WebSocket
from kit_app import kit_app, running, settings_of, url_of
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from freeloop import Db, Freeloop, Outbound
from freeloop.database import Database
from freeloop.dependencies import Kit, current_database
from freeloop.errors import DatabaseUnavailable, MigrationError
from freeloop.settings import Settings
from freeloop.testing import eventually
from serving import served

TOKEN = "a-token-for-tests"  # noqa: S105 - nobody else's secret
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
NAME = "select current_database()"
MIGRATION = "-- one more\n-- depends: {}\n\n-- migrate: apply\n\n{};\n\n-- migrate: rollback\n"


def sessions(database):
    """Count the other sessions on the test's database."""
    return database.fetch_value(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )


@pytest.fixture
def folder(migrations, tmp_path, request):
    """The migrations that the test's database has, and a further one."""
    shutil.copytree(migrations, tmp_path, dirs_exist_ok=True)
    last = max(path.stem for path in tmp_path.glob("*.sql"))
    (tmp_path / "9999-further.sql").write_text(
        MIGRATION.format(last, getattr(request, "param", "create table further (n int)"))
    )
    return tmp_path


async def test_a_route_gets_the_database(address):
    app, kit = kit_app(address)

    @app.get("/")
    async def read(db: Db, own: Kit) -> list:
        return [await db.fetch_value(NAME), db is kit.database, own is kit]

    async with running(app) as client, client.get("/") as answer:
        assert await answer.json() == [address.database, True, True]


async def test_a_route_gets_the_outbound_client(address):
    app, kit = kit_app(address, database=False)

    @app.get("/upstream")
    async def upstream() -> dict:
        return {"n": 1}

    @app.get("/through")
    async def through(outbound: Outbound, url: str) -> list:
        return [(await outbound.get(url)).json(), outbound is kit.outbound]

    async with running(app) as client:
        url = str(client._base_url.with_path("/upstream"))
        async with client.get("/through", params={"url": url}) as answer:
            assert await answer.json() == [{"n": 1}, True]


async def test_an_empty_pool_is_503_with_retry_after_and_says_who_holds_it(address):
    app, kit = kit_app(address, settings={"database_pool_size": 1, "database_acquire_timeout": 0.1})
    kit.show_console(app)

    @app.get("/export")
    async def export(db: Db) -> None:
        async with db.transaction():
            begun.set()
            await end.wait()

    @app.get("/")
    async def read(db: Db) -> str:
        return await db.fetch_value(NAME)

    begun, end = asyncio.Event(), asyncio.Event()
    async with running(app) as client:
        holding = asyncio.create_task(client.get("/export"))
        await begun.wait()
        try:
            async with client.get("/") as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                detail = (await answer.json(content_type=None))["detail"]
            async with client.get("/console/database.json") as answer:
                (pool,) = (await answer.json())["pools"]
            async with client.get("/console/database") as answer:
                page = await answer.text()
        finally:
            end.set()
            (await holding).close()
    assert pool["acquired"] == 2  # the one that had it at once, and the one that waited in vain
    assert 0.09 <= pool["acquire_seconds"] < 1
    assert re.search(r"time to acquire one: [\d.]+ m?s in the mean of 2\b", page)
    assert "1 of 1 lent; longest held 0." in detail
    assert "by /export at " in detail
    assert "test_kit_database.py:" in detail


async def test_a_mounted_app_and_a_websocket_get_the_database_too(address):
    app, _ = kit_app(address)
    inner = FastAPI()

    @inner.get("/")
    async def read(db: Db) -> str:
        return await db.fetch_value(NAME)

    @app.websocket("/socket")
    async def speak(socket: WebSocket, db: Db) -> None:
        await socket.accept()
        await socket.send_text(await db.fetch_value(NAME))
        await socket.close()

    app.mount("/inner", inner)
    async with running(app) as client:
        async with client.get("/inner/") as answer:
            assert await answer.json() == address.database
        async with client.ws_connect("/socket") as socket:
            assert await socket.receive_str(timeout=5) == address.database


async def test_a_plain_asgi_app_around_it_does_not_hide_the_kit(address):
    app, _ = kit_app(address)

    @app.get("/")
    async def read(db: Db) -> str:
        return await db.fetch_value(NAME)

    async def around(scope, receive, send):
        await app(scope, receive, send)

    outer = Freeloop(settings=settings_of(address))
    async with outer.open(), running(outer.wrap(around)) as client, client.get("/") as answer:
        assert await answer.json() == address.database


async def test_a_starlette_app_finds_it_by_its_kit(address):
    async def read(request):
        return JSONResponse(await request.app.state.freeloop.database.fetch_value(NAME))

    app = Starlette(routes=[Route("/", read)])
    Freeloop(app, database=True, settings=settings_of(address))
    async with running(app) as client, client.get("/") as answer:
        assert await answer.json() == address.database


async def test_it_is_open_around_the_lifespan_of_the_app(address, database):
    seen = []

    @asynccontextmanager
    async def lifespan(_):
        seen.append(await kit.database.fetch_value(NAME))
        yield
        # What the app does at its end, and what its background executions do, still has a database.
        seen.append(await kit.database.fetch_value(NAME))

    async def late():
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(await kit.database.fetch_value("select 'late'"))

    app, kit = kit_app(address, lifespan=lifespan, settings={"shutdown_timeout": 0.2})
    async with app.router.lifespan_context(app):
        task = kit.spawn(late)
        await asyncio.sleep(0)
    assert task.cancelled()
    assert seen == [address.database, "late", address.database]
    with pytest.raises(RuntimeError, match="not open"):
        _ = kit.database
    await eventually(lambda: _is(sessions(database), 0))


async def _is(awaitable, value):
    return await awaitable == value


async def test_it_opens_again(address):
    app, kit = kit_app(address)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            assert await kit.database.fetch_value("select 1") == 1
            assert kit.metrics.render().count(b"# TYPE freeloop_database_waiting gauge") == 1


@pytest.mark.parametrize("spelling", [str, lambda path: path], ids=["text", "path"])
async def test_migrations_are_applied_before_the_app_starts(address, folder, spelling):
    @asynccontextmanager
    async def lifespan(_):
        await kit.database.execute("insert into further values (1)")
        yield

    app, kit = kit_app(address, database=False, migrations=spelling(folder), lifespan=lifespan)
    async with app.router.lifespan_context(app):
        assert await kit.database.fetch_value("select count(*) from further") == 1


@pytest.mark.parametrize("folder", ["create nonsense"], indirect=True)
async def test_a_start_that_fails_in_the_migrations_closes_what_was_open(address, database, folder):
    app, kit = kit_app(address, migrations=folder)
    with pytest.raises(MigrationError, match="9999-further"):
        async with app.router.lifespan_context(app):
            pass
    with pytest.raises(RuntimeError, match="not open"):
        _ = kit.outbound
    await eventually(lambda: _is(sessions(database), 0))


async def test_a_start_that_fails_in_the_app_closes_the_database(address, database):
    @asynccontextmanager
    async def lifespan(_):
        assert await kit.database.fetch_value("select 1") == 1
        raise LookupError("no such thing")
        yield

    app, kit = kit_app(address, lifespan=lifespan)
    with pytest.raises(LookupError):
        async with app.router.lifespan_context(app):
            pass
    await eventually(lambda: _is(sessions(database), 0))


async def test_without_a_server_the_start_fails_in_time(free_tcp_port):
    app = FastAPI()
    url = f"postgresql://me:secret@127.0.0.1:{free_tcp_port}/there"
    settings = Settings(_env_file=None, database_url=url, start_timeout=0.3)
    kit = Freeloop(app, database=True, settings=settings)
    with pytest.raises(DatabaseUnavailable, match="was not reached within"):
        async with app.router.lifespan_context(app):
            pass
    with pytest.raises(RuntimeError, match="not open"):
        _ = kit.outbound


async def test_what_the_app_has_not_asked_for_is_named(address):
    app, kit = kit_app(address, database=False)

    @app.get("/")
    async def read(db: Db) -> str:
        return await db.fetch_value(NAME)

    async with running(app) as client:
        with pytest.raises(RuntimeError, match=r"no database: write Freeloop\(app, database=True\)"):
            _ = kit.database
        async with client.get("/") as answer:
            assert answer.status == 500


async def test_without_a_kit_the_dependency_says_so(caplog):
    app = FastAPI()

    @app.get("/")
    async def read(db: Db) -> str:
        return await db.fetch_value(NAME)

    async with served(app) as (client, _), client.get("/") as answer:
        assert answer.status == 500
    assert "there is no kit around this app" in caplog.text


async def test_another_database_can_stand_in_for_it(address, database):
    app, _ = kit_app(address, database=False)

    async def given():
        return database

    app.dependency_overrides[current_database] = given

    @app.get("/")
    async def read(db: Db) -> bool:
        return db is database

    async with running(app) as client, client.get("/") as answer:
        assert await answer.json() is True


async def test_without_an_app(address):
    kit = Freeloop(database=True, settings=settings_of(address))
    async with kit.open():
        assert await kit.database.fetch_value(NAME) == address.database
    async with Database(replace(address, dsn=url_of(address))) as database:
        assert await database.fetch_value(NAME) == address.database
    with pytest.raises(DatabaseUnavailable, match="not open"):
        await database.fetch_value(NAME)


async def test_the_metrics_show_the_database_while_it_is_open(address):
    app, kit = kit_app(address, settings={"token": TOKEN})
    async with running(app) as client, client.get("/metrics", headers=AUTHORIZED) as answer:
        assert '\nfreeloop_database_connections_idle{pool="main"} 1.0\n' in await answer.text()
    assert b"\nfreeloop_database_connections_idle{" not in kit.metrics.render()


async def test_a_route_waits_for_nothing_of_the_kits(address):
    """A dependency that ran in a thread would wait for one where all are busy."""
    app, kit = kit_app(address, settings={"route_threads": 1})
    release = asyncio.Event()

    @app.get("/")
    async def read(db: Db, outbound: Outbound, own: Kit) -> bool:
        return True

    def block(loop):
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)

    async with running(app) as client:
        threads = kit._resources.threads.get().routes
        busy = asyncio.create_task(threads.run(block, asyncio.get_running_loop()))
        await eventually(lambda: threads.in_use == 1)
        async with client.get("/", timeout=aiohttp.ClientTimeout(total=5)) as answer:
            assert answer.status == 200
        release.set()
        await busy
