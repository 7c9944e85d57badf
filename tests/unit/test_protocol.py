"""Answers leave in one piece, and nothing waits for a body that is not there yet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from freeloop.server.outbox import Corked, Outbox
from freeloop.server.protocol import H11, MOST_HEAD, Flow, HttpTools, Signal, corked

Wire: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PIECE = 100_000


class Recorded(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.closed, "written after the end"
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def write_eof(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed


async def step() -> None:
    """Let the loop go round once."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await future


@pytest.fixture
async def transport() -> Recorded:
    return Recorded()


@pytest.fixture
async def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
async def line(transport: Recorded, outbox: Outbox) -> Corked:
    return Corked(transport, outbox)


async def test_what_one_turn_writes_is_one_write(line: Corked, transport: Recorded) -> None:
    line.write(b"HTTP/1.1 200 OK\r\n\r\n")
    line.write(b"body")
    line.write(memoryview(b"more"))
    line.write(b"")
    assert transport.written == []
    await step()
    assert transport.written == [b"HTTP/1.1 200 OK\r\n\r\nbodymore"]


async def test_a_large_body_is_not_copied_and_comes_in_order(line: Corked, transport: Recorded) -> None:
    line.write(b"HTTP/1.1 200 OK\r\n\r\n")
    line.write(b"x" * PIECE)
    assert [len(each) for each in transport.written] == [19, PIECE]
    line.write(memoryview(b"y"))
    await step()
    assert [len(each) for each in transport.written] == [19, PIECE, 1]


async def test_many_small_writes_do_not_pile_up(line: Corked, transport: Recorded) -> None:
    for _ in range(10):
        line.write(b"x" * 20_000)
    assert sum(map(len, transport.written)) >= 10 * 20_000 - 65_536


async def test_no_more_than_so_many_answers_wait_for_each_other(outbox: Outbox) -> None:
    transports = [Recorded() for _ in range(40)]
    for transport in transports:
        Corked(transport, outbox).write(b"answer")
    assert sum(len(transport.written) for transport in transports) >= 32
    await step()
    assert all(transport.written == [b"answer"] for transport in transports)


async def test_an_answer_behind_one_that_waits_long_already_goes_with_it_at_once(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Recorded(), Recorded()
    now = 1.0
    monkeypatch.setattr("freeloop.server.outbox.time.monotonic", lambda: now)
    Corked(first, outbox).write(b"first")
    now += 0.002
    Corked(second, outbox).write(b"second")
    assert first.written == [b"first"]
    assert second.written == [b"second"]
    await step()


@pytest.mark.parametrize("end", ["close", "write_eof"])
async def test_the_end_comes_behind_what_is_held(line: Corked, transport: Recorded, end: str) -> None:
    line.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    getattr(line, end)()
    await step()
    assert transport.written == [b"HTTP/1.1 400 Bad Request\r\n\r\n"]
    assert transport.closed
    assert line.is_closing()


async def test_signal_wakes_all_who_wait() -> None:
    signal = Signal()
    waiting = [asyncio.ensure_future(signal.wait()) for _ in range(3)]
    await step()
    waiting[0].cancel()
    signal.set()
    done, _ = await asyncio.wait(waiting, timeout=1)
    assert len(done) == 3
    assert [each.cancelled() for each in waiting] == [True, False, False]
    await signal.wait()
    signal.clear()
    late = asyncio.ensure_future(signal.wait())
    await step()
    assert not late.done()
    signal.set()
    await asyncio.wait_for(late, 1)


async def test_a_client_that_does_not_read_holds_up_the_sender(transport: Recorded) -> None:
    flow = Flow(transport)
    await flow.drain()
    flow.pause_writing()
    held = asyncio.ensure_future(flow.drain())
    await step()
    assert not held.done()
    flow.resume_writing()
    await asyncio.wait_for(held, 1)


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_one_answer_is_one_packet_and_the_head_of_a_stream_comes_at_once(http: str) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        if scope["path"] == "/slow":
            await go_on.wait()
        await send({"type": "http.response.body", "body": b"body"})

    async with listening(app, http) as (reader, writer), asyncio.timeout(5):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        go_on.set()
        assert await reader.readexactly(4) == b"body"
        for _ in range(20):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await reader.read(10_000)
            assert answer.endswith(b"\r\n\r\nbody")


@asynccontextmanager
async def listening(app: ASGIApp, http: str) -> AsyncIterator[Wire]:
    """Serve ``app`` by our protocol; give a connection to it."""
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None)
    config.load()
    protocol = corked(config.http_protocol_class)
    state = uvicorn.server.ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    assert issubclass(protocol, {"httptools": HttpTools, "h11": H11}[http])
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def answer_early(scope: Scope, _: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"body"})


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the server closes, which it has to do in time."""
    async with asyncio.timeout(5):
        return await reader.read()


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "])
async def test_a_connection_that_sends_no_whole_request_is_closed(
    http: str, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freeloop.server.protocol.HEAD_TIMEOUT", 0.2)
    async with listening(answer_early, http) as (reader, writer):
        writer.write(begin)
        assert await read_to_the_end(reader) == b""


@pytest.mark.parametrize("rest", [b"GET / HTTP/1.1\r\nx: " + b"x" * 100, b"x" * 100])
async def test_a_trickle_keeps_no_connection_that_has_had_its_answer(
    rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freeloop.server.protocol.HEAD_TIMEOUT", 0.3)
    length = (
        b"0" if rest.startswith(b"GET") else b"100000"
    )  # the head of the next one, or a body that nobody reads
    async with listening(answer_early, "httptools") as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %b\r\n\r\n" % length)
        assert (await reader.readuntil(b"\r\n\r\nbody")).startswith(b"HTTP/1.1 200 ")
        ended = asyncio.create_task(read_to_the_end(reader))
        for byte in rest:
            if (await asyncio.wait([ended], timeout=0.05))[0]:
                break
            writer.write(bytes([byte]))
        assert ended.done()
        await asyncio.gather(
            ended, return_exceptions=True
        )  # closed under what was just sent, it may be a reset


async def test_a_request_that_takes_longer_than_a_head_may_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("freeloop.server.protocol.HEAD_TIMEOUT", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)
        await answer_early(scope, receive, send)

    async with listening(app, "httptools") as (reader, writer), asyncio.timeout(5):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        await step()
        writer.write(b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\nbody")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("behind", [b"", b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_a_head_without_end_is_refused(behind: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue

    async with listening(app, "httptools") as (reader, writer):
        writer.write(behind + b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MOST_HEAD // 6 + 1))
        assert (await read_to_the_end(reader)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_what_is_no_http_is_told_by_a_problem_document(http: str) -> None:
    async with listening(answer_early, http) as (reader, writer):
        writer.write(b"\x00 hello\r\n\r\n")
        head, _, body = (await read_to_the_end(reader)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["title"] == "This is no valid HTTP request"


def test_another_protocol_stays_as_it_is() -> None:
    class Other(asyncio.Protocol):
        pass

    assert corked(Other) is Other
