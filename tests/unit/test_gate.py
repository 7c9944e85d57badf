"""The gate around a real app on a real socket: ids, problem documents, records, body limit."""

import asyncio
import contextlib
import json
from typing import Annotated

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI, Path
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from freeloop.errors import NotFound, PoolTimeout, Unauthorized
from freeloop.gate.install import install_gate, leave_out_idle_layers
from freeloop.gate.middleware import Gate
from freeloop.gate.policy import Policy
from freeloop.gate.problems import install_problem_handlers, responses
from freeloop.scope import current_scope


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


def build(records, *, max_body=100, begun=None):
    app = FastAPI()

    @app.get("/forever")
    async def forever():
        begun.set()
        await asyncio.Event().wait()

    @app.get("/scope/{name}")
    async def scope(name: str):
        return current_scope().id

    @app.get("/number/{number}")
    async def number(number: Annotated[int, Path(ge=1)]):
        return number

    @app.get("/missing")
    async def missing():
        raise NotFound("Item 7 does not exist")

    @app.get("/busy")
    async def busy():
        raise PoolTimeout("no connection came free", retry_after=3)

    @app.get("/secret")
    async def secret():
        raise Unauthorized("The bearer token is missing")

    @app.get("/bug")
    async def bug():
        return {}["gone"]

    @app.get("/half")
    async def half():
        async def body():
            yield b"first"
            raise RuntimeError("half-way")

        return StreamingResponse(body())

    @app.post("/body", responses=responses())
    async def body(body: Body):
        return body

    @app.get("/two")
    async def two_get(): ...

    @app.delete("/two")
    async def two_delete(): ...

    install_problem_handlers(app)
    leave_out_idle_layers(app)
    install_gate(app, Gate(app, observers=[records.append], policy=Policy(max_body=max_body)))
    return app


@contextlib.asynccontextmanager
async def served(app, **options):
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none", **options)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session, server
        server.should_exit = True
        async with asyncio.timeout(10):
            await running


@pytest.fixture
def records():
    return []


@pytest.fixture
async def client(records):
    async with served(build(records)) as (session, _):
        yield session


async def test_the_request_id_is_given_echoed_and_recorded(client, records):
    async with client.get("/scope/x", headers={"X-Request-ID": "abc"}) as answer:
        assert (await answer.json(), answer.headers["X-Request-ID"]) == ("abc", "abc")
    async with client.get("/scope/x?secret=1") as answer:
        assert await answer.json() == answer.headers["X-Request-ID"]
    first, second = records
    assert first[:5] == ("abc", "GET", "/scope/x", "/scope/{name}", 200)
    assert second.path == "/scope/x"
    assert 0 < second.duration < 5
    assert second.client == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "status", "title", "header"),
    [
        ("/missing", 404, "Item 7 does not exist", None),
        ("/nowhere", 404, "No such page: /nowhere", None),
        ("/busy", 503, "No database connection free", ("Retry-After", "3")),
        ("/secret", 401, "The bearer token is missing", ("WWW-Authenticate", 'Bearer realm="freeloop"')),
        ("/bug", 500, "Internal error", None),
        ("/body", 405, "GET is not allowed on /body", ("Allow", "POST")),
        ("/number/0", 422, "path.number: Input should be greater than or equal to 1", None),
    ],
)
async def test_errors_are_problem_documents(client, records, path, status, title, header):
    async with client.get(path) as answer:
        problem = await answer.json()
        assert (answer.status, problem["status"], problem["title"]) == (status, status, title)
        assert answer.content_type == "application/problem+json"
        assert problem["request_id"] == answer.headers["X-Request-ID"] == records[0].request_id
        assert "Traceback" not in await answer.text()
        if header:
            assert answer.headers[header[0]] == header[1]
    assert records[0].status == status


@pytest.mark.parametrize(
    ("body", "title"),
    [
        (b'{"name": 1, "x": 2}', "body.name: Input should be a valid string (and 1 more)"),
        (b'{"\\ud800": 1}', None),
        (b'{"name": NaN}', None),
        (b"{", "body: expected JSON, at character 1: Expecting property name enclosed in double quotes"),
        (b"\xff", None),
        (b"[" * 90, None),
    ],
)
async def test_bad_bodies_are_told_and_never_an_internal_error(client, body, title):
    async with client.post("/body", data=body, headers={"Content-Type": "application/json"}) as answer:
        problem = await answer.json()
        assert answer.status in {400, 422}, problem
        assert answer.content_type == "application/problem+json"
        if title:
            assert problem["title"] == title
            assert problem["errors"][-1]["field"] in {"body.x", "body"}


async def test_a_body_of_another_type_is_told_which_is_expected(client):
    async with client.post("/body", data={"name": "a form"}) as answer:
        assert answer.status == 422
        came = "came application/x-www-form-urlencoded"
        assert (await answer.json())["title"] == f"body: expected Content-Type: application/json, {came}"


async def test_a_body_over_the_limit_is_refused_announced_or_not(client):
    async def chunks():
        for _ in range(20):
            yield b"x" * 10

    for data in (b"x" * 101, chunks()):
        async with client.post("/body", data=data, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 413
            assert answer.content_type == "application/problem+json"
            assert "X-Request-ID" in answer.headers


async def test_many_mistakes_make_no_large_answer(records):
    data = json.dumps({f"key-{number}": 1 for number in range(5_000)}).encode()
    async with (
        served(build(records, max_body=1_000_000)) as (session, _),
        session.post("/body", data=data, headers={"Content-Type": "application/json"}) as answer,
    ):
        problem = await answer.json()
        assert (answer.status, len(problem["errors"])) == (422, 20)
        assert problem["title"].endswith("(and 5000 more)")


async def test_a_request_that_the_shutdown_cuts_gets_a_503(records):
    begun = asyncio.Event()
    async with served(build(records, begun=begun), timeout_graceful_shutdown=1) as (session, server):
        cut = asyncio.create_task(session.get("/forever"))
        async with asyncio.timeout(10):
            await begun.wait()
            server.should_exit = True
            async with await cut as answer:
                assert (answer.status, (await answer.json())["title"]) == (
                    503,
                    "The service is shutting down",
                )
                assert answer.headers["X-Request-ID"] == records[0].request_id
    assert records[0].status == 503


async def test_a_refused_method_is_told_all_that_are_allowed(client):
    async with client.post("/two") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, DELETE")


async def test_an_error_after_the_start_cuts_the_connection(client, records):
    async with client.get("/half") as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    assert records[0].status == 200
