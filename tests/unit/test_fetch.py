"""GET /fetch-data: a real app on a real socket, in front of upstreams that misbehave on demand."""

import asyncio
import contextlib
import json
import socket
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI

from freeloop.gate.install import install_gate
from freeloop.gate.middleware import Gate
from freeloop.gate.policy import Policy
from freeloop.gate.problems import install_problem_handlers
from freeloop.outbound import AiohttpTransport, Client
from freeloop.service import fetch

BOUND = 10.0


class Upstream:
    """One source a path; each is a status, a body, or an async function that returns a body."""

    def __init__(self, **paths):
        self.paths = paths
        self.asked = []
        self.left = []
        self.changed = asyncio.Condition()

    async def handle(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode().strip("/")
        async with self.changed:
            self.asked.append(path)
            self.changed.notify_all()
        answer = self.paths[path]
        answering = asyncio.ensure_future(answer()) if callable(answer) else done(answer)
        leaving = asyncio.ensure_future(reader.read())
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            content = answering.result()
            status, body = (content, b"oops") if isinstance(content, int) else (200, content)
            length = f"Content-Length: {len(body)}\r\nConnection: close"
            writer.write(f"HTTP/1.1 {status} X\r\n{length}\r\n\r\n".encode() + body)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        else:
            async with self.changed:
                self.left.append(path)
                self.changed.notify_all()
        for task in (answering, leaving):
            task.cancel()
        writer.close()

    async def wait_for(self, condition):
        async with asyncio.timeout(BOUND), self.changed:
            await self.changed.wait_for(condition)


def done(value):
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def forever():
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def service(upstream, *, seconds=BOUND, max_body=100_000, sources=None):
    """The app with the router, in front of ``upstream``; gives a function that fetches a path of it."""
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
        stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
        if sources is None:
            sources = {name: f"http://127.0.0.1:{port}/{name}" for name in upstream.paths}
        client = await stack.enter_async_context(
            Client(AiohttpTransport(), timeout=seconds, max_body=max_body)
        )

        @contextlib.asynccontextmanager
        async def lifespan(_):
            yield {"service": SimpleNamespace(sources=sources, outbound=client)}

        app = FastAPI(lifespan=lifespan)
        app.include_router(fetch.router)
        install_problem_handlers(app)
        install_gate(app, Gate(app, policy=Policy(max_body=1000)))
        url = await stack.enter_async_context(running(app))
        caller = await stack.enter_async_context(Client(AiohttpTransport(), timeout=3 * BOUND))

        async def call(query=""):
            return await caller.get(f"{url}/fetch-data{query}")

        yield call


@contextlib.asynccontextmanager
async def running(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", ws="none"))
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(BOUND):
        while not server.started:
            await asyncio.sleep(0.001)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        async with asyncio.timeout(BOUND):
            await serving


async def test_the_first_source_is_the_default():
    async with service(Upstream(b=b"[1]", a=b"[2]")) as call:
        response = await call()
        named = await call("?source=a")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    assert (response.content, named.content) == (b'{"data":[1]}', b'{"data":[2]}')


@pytest.mark.parametrize(
    "body",
    [
        b'{"b": 123456789012345678901234567890, "a": 1.10, "b": 1e999}',
        rb'"\ud800"',
        b"null",
        b"[" + b"1.0," * 20_000 + b'"end"]',
    ],
    ids=["numbers and keys", "lone surrogate", "null", "long"],
)
async def test_the_json_of_a_source_is_untouched(body):
    async with service(Upstream(a=body, b=b"1")) as call:
        assert (await call("?source=a")).content == b'{"data":' + body + b"}"
        assert (await call("?source=a&source=b")).content == (
            b'{"data":{"a":' + body + b',"b":1},"errors":{}}'
        )


async def test_a_byte_order_mark_does_not_get_into_the_middle():
    async with service(Upstream(a=b"\xef\xbb\xbf[1]")) as call:
        assert (await call()).content == b'{"data":[1]}'


@pytest.mark.parametrize(
    ("answer", "status", "title", "reason"),
    [
        (500, 502, "Upstream answered with an error", "answered with status 500"),
        (b"<html>", 502, "Upstream answered with an unusable body", "expected to answer with JSON"),
        (b"NaN", 502, "Upstream answered with an unusable body", "NaN is not a JSON number"),
        (b" " * 100_001, 502, "Upstream answered with an unusable body", "more than the 100000 bytes"),
        (forever, 504, "Upstream too slow", "within 0.3 s"),
    ],
    ids=["status", "not JSON", "nearly JSON", "too large", "too slow"],
)
async def test_the_failure_of_one_source_is_the_answer(answer, status, title, reason):
    async with service(Upstream(a=answer), seconds=0.3) as call:
        response = await call()
    problem = response.json()
    assert (response.status_code, problem["status"], problem["title"]) == (status, status, title)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem["detail"].startswith("source 'a' (GET http://127.0.0.1:")
    assert reason in problem["detail"]


async def test_a_source_that_cannot_be_reached():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}/?key=secret"
        async with service(Upstream(), sources={"gone": gone}) as call:
            response = await call()
    assert (response.status_code, response.json()["title"]) == (502, "Upstream unreachable")
    assert "secret" not in response.text


def each_waits_for_the_other():
    barrier = asyncio.Barrier(2)

    async def answer():
        await barrier.wait()
        return b"1"

    return answer


@pytest.mark.parametrize("policy", ["collect", "first-error"])
async def test_several_sources_are_fetched_at_the_same_time(policy):
    answer = each_waits_for_the_other()
    async with service(Upstream(a=answer, b=answer)) as call:
        response = await call(f"?source=b&source=a&policy={policy}")
    assert (response.status_code, response.content) == (200, b'{"data":{"b":1,"a":1},"errors":{}}')


async def test_other_requests_are_answered_while_one_waits():
    go_on = asyncio.Event()

    async def slow():
        await go_on.wait()
        return b"2"

    upstream = Upstream(slow=slow, quick=b"1")
    async with service(upstream) as call:
        waiting = asyncio.create_task(call("?source=slow"))
        await upstream.wait_for(lambda: upstream.asked == ["slow"])
        assert (await call("?source=quick")).content == b'{"data":1}'
        assert not waiting.done()
        go_on.set()
        assert (await waiting).content == b'{"data":2}'


async def test_a_source_named_twice_is_fetched_once():
    upstream = Upstream(a=b"1", b=b"2")
    async with service(upstream) as call:
        assert (await call("?source=a&source=b&source=a")).content == b'{"data":{"a":1,"b":2},"errors":{}}'
        assert sorted(upstream.asked) == ["a", "b"]
        assert (await call("?source=a&source=a")).content == b'{"data":1}'


async def test_what_came_is_collected_with_the_failures():
    async with service(Upstream(good=b"1", bad=500, slow=forever), seconds=0.3) as call:
        response = await call("?source=good&source=bad&source=slow")
    answer = response.json()
    assert response.status_code == 200
    assert answer["data"] == {"good": 1}
    assert {name: problem["status"] for name, problem in answer["errors"].items()} == {
        "bad": 502,
        "slow": 504,
    }
    assert answer["errors"]["bad"]["request_id"] == response.headers["X-Request-ID"]
    assert answer["errors"]["bad"]["detail"].startswith("source 'bad' (GET http://127.0.0.1:")


@pytest.mark.parametrize(
    ("answers", "status", "title"),
    [
        ({"a": forever, "b": forever}, 504, "None of the 2 sources answered in time"),
        ({"a": forever, "b": 500}, 502, "None of the 2 sources answered"),
    ],
)
async def test_where_all_failed_there_is_no_data_to_answer_with(answers, status, title):
    async with service(Upstream(**answers), seconds=0.3) as call:
        response = await call("?source=a&source=b")
    problem = response.json()
    assert (response.status_code, problem["title"]) == (status, title)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert [error["field"] for error in problem["errors"]] == ["data.a", "data.b"]
    assert "within 0.3 s" in problem["errors"][0]["message"]


async def test_the_first_error_cancels_the_others():
    upstream = Upstream(bad=None, slow=forever)

    async def fail_once_both_are_asked():
        await upstream.wait_for(lambda: len(upstream.asked) == 2)
        return 503

    upstream.paths["bad"] = fail_once_both_are_asked
    async with service(upstream) as call:
        response = await call("?source=slow&source=bad&policy=first-error")
        await upstream.wait_for(lambda: upstream.left == ["slow"])
    assert (response.status_code, response.json()["title"]) == (502, "Upstream answered with an error")
    assert "source 'bad'" in response.json()["detail"]


async def test_unknown_sources_are_refused_before_anything_is_fetched():
    upstream = Upstream(a=b"1", b=b"2")
    async with service(upstream) as call:
        response = await call("?source=a&source=c")
    assert response.status_code == 422
    assert response.json()["title"] == "query.source: no source is called 'c'"
    assert "'a', 'b'" in response.json()["detail"]
    assert upstream.asked == []


async def test_without_sources_there_is_nothing_to_fetch():
    async with service(Upstream(), sources={}) as call:
        response = await call()
        named = await call("?source=a")
    assert (response.status_code, response.json()["title"]) == (422, "No source is configured")
    assert (named.status_code, named.json()["title"]) == (422, "query.source: no source is called 'a'")


async def test_an_unknown_policy_is_refused():
    async with service(Upstream(a=b"1")) as call:
        response = await call("?policy=maybe")
    assert response.status_code == 422
    assert "query.policy" in response.json()["title"]


async def test_any_name_and_any_query_yield_json():
    async with service(
        Upstream(), sources={'a"b': "http://127.0.0.1:1/", "ü": "http://127.0.0.1:1/"}
    ) as call:
        response = await call("?source=a%22b&source=%C3%BC")
        odd = await call("?source=%ED%A0%80%00" + "x" * 1000)
    assert response.status_code == 502
    assert [error["field"] for error in response.json()["errors"]] == ['data.a"b', "data.ü"]
    assert odd.status_code == 422
    assert len(odd.json()["title"]) < 200


def test_the_route_is_documented():
    app = FastAPI()
    app.include_router(fetch.router)
    route = app.openapi()["paths"]["/fetch-data"]["get"]
    assert {"200", "422", "502", "504"} <= set(route["responses"])
    assert list(route["responses"]["200"]["content"]) == ["application/json"]
    assert json.dumps(route["responses"]["200"]["content"]["application/json"]["examples"])
    parameters = {parameter["name"]: parameter for parameter in route["parameters"]}
    assert parameters["source"]["schema"]["type"] == "array"
    assert parameters["source"]["required"] is False
    assert parameters["policy"]["schema"]["enum"] == ["collect", "first-error"]
    assert all("description" in parameter for parameter in parameters.values())


def test_fastapi_solves_nothing_for_the_route():
    (route,) = fetch.router.routes
    # Two dependencies and two parameters took it 48 µs, more than three times the call itself.
    assert (route.dependant.dependencies, route.dependant.query_params) == ([], [])
