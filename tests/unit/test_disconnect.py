"""The client goes away: the handler is cancelled within 0.1 s, and nothing is stolen from it."""

import asyncio
import contextlib
import socket
import time
from collections import deque

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from freeloop import finish
from freeloop.gate.disconnect import ReadAhead
from freeloop.server.protocol import corked
from freeloop.testing import eventually
from serving import Ending, Metronome, connected, forever, gated, port_of, request_of, served, soon

LATE = 0.1


@pytest.fixture(scope="module", params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(
    params=["httptools", "h11", HttpToolsProtocol, H11Protocol],
    ids=["httptools", "h11", "our-httptools", "our-h11"],
)
def http(request):
    """uvicorn as it is, and our server's way with it, which tells of a lost connection by itself."""
    return request.param if isinstance(request.param, str) else corked(request.param)


def middlewares(app, *, stacked, function):
    async def pass_on(request: Request, call_next):
        return await call_next(request)

    for _ in range(stacked):
        if function:
            app.middleware("http")(pass_on)
        else:
            app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)


async def go_and_measure(ending, writer, metronome):
    """Close; return how long after that the handler was cancelled, less what the loop was late."""
    await soon(ending.begun.wait())
    gone = time.monotonic()
    writer.transport.abort()
    await soon(ending.over.wait())
    return ending.at - gone - metronome.late


@pytest.mark.parametrize(("stacked", "function"), [(0, False), (1, False), (3, False), (1, True), (3, True)])
async def test_before_the_first_byte(http, stacked, function):
    for _ in range(3):
        app, ending, records = FastAPI(), Ending(), []
        gate = gated(app, records=records)
        middlewares(app, stacked=stacked, function=function)

        @app.get("/")
        async def hang():
            async with ending:  # noqa: B023 - one app per round
                await forever()

        async with (
            served(app, http=http) as (_, server),
            Metronome() as metronome,
            connected(server, request_of("/")) as (_, writer),
        ):
            assert await go_and_measure(ending, writer, metronome) < LATE
            assert ending.error is asyncio.CancelledError
            await eventually(lambda: gate.running == 0)  # noqa: B023 - as above
            assert (records[0].status, records[0].cause) == (499, "disconnect")


@pytest.mark.parametrize("stacked", [0, 2])
async def test_during_a_stream(http, stacked):
    app, ending = FastAPI(), Ending()
    gate = gated(app)
    middlewares(app, stacked=stacked, function=True)

    @app.get("/")
    async def stream():
        async def body():
            yield b"part"
            async with ending:
                await forever()

        return StreamingResponse(body())

    async with (
        served(app, http=http) as (_, server),
        Metronome() as metronome,
        connected(server, request_of("/")) as (reader, writer),
    ):
        await soon(reader.readuntil(b"part"))
        assert await go_and_measure(ending, writer, metronome) < LATE
        await eventually(lambda: gate.running == 0)


@pytest.mark.parametrize("polite", [True, False], ids=["fin", "reset"])
async def test_while_the_body_is_only_half_sent(http, polite):
    app, ending, seen = FastAPI(), Ending(), []
    gate = gated(app)

    @app.post("/")
    async def read(request: Request):
        async with ending:
            try:
                await request.body()
            except ClientDisconnect as error:  # the app's own receive may tell it first
                seen.append(error)
                raise

    half = request_of("/", method="POST", headers=["Content-Length: 1000"], body=b"x" * 500)
    async with (
        served(app, http=http) as (_, server),
        Metronome() as metronome,
        connected(server, half) as (_, writer),
    ):
        await soon(ending.begun.wait())
        gone = time.monotonic()
        if polite:
            writer.close()
        else:
            linger_not(writer)
            writer.transport.abort()
        await soon(ending.over.wait())
        assert ending.at - gone < LATE + metronome.late
        assert ending.error in {asyncio.CancelledError, ClientDisconnect}
        await eventually(lambda: gate.running == 0)


@pytest.mark.parametrize(
    ("size", "polite"), [(10, True), (150_000, True), (1_000_000, False)], ids=["short", "long", "reset"]
)
async def test_with_a_body_that_the_app_never_reads(http, size, polite):
    """uvicorn stops to read after 64 KiB, and then notices nothing.

    Nor does the kernel, where the system of the client waits with the end until there is room for the rest.
    """
    app, ending = FastAPI(), Ending()
    gated(app)

    @app.post("/")
    async def ignore():
        async with ending:
            await forever()

    whole = request_of("/", method="POST", headers=[f"Content-Length: {size}"], body=b"x" * size)
    async with served(app, http=http) as (_, server), Metronome() as metronome:
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(whole)
        if not polite:
            linger_not(writer)
        assert await go_and_measure(ending, writer, metronome) < LATE


async def test_nothing_is_stolen_from_an_app_that_reads_its_body_later(http):
    app, begun, go_on = FastAPI(), asyncio.Event(), asyncio.Event()
    gate = gated(app)

    @app.post("/")
    async def read_later(request: Request):
        begun.set()
        await go_on.wait()
        return len(await request.body())

    async def chunks():
        yield b"x" * 100_000
        await begun.wait()
        # Looked at several times meanwhile.
        looks = gate._reaper._sweep
        count = 0

        def counting():
            nonlocal count
            count += 1
            looks()

        gate._reaper._sweep = counting
        await eventually(lambda: count >= 3)
        go_on.set()
        for _ in range(20):
            yield b"x" * 100_000

    async with (
        served(app, http=http) as (session, _),
        session.post("/", data=chunks()) as answer,
    ):
        assert await answer.json() == 2_100_000


async def test_an_app_that_asks_itself_is_answered(http):
    app, asked = FastAPI(), asyncio.Event()
    gated(app)
    answers = []

    @app.get("/")
    async def ask(request: Request):
        answers.append(await request.is_disconnected())
        asked.set()
        try:
            await forever()
        finally:
            answers.append(await request.is_disconnected())

    async with (
        served(app, http=http) as (_, server),
        connected(server, request_of("/")) as (_, writer),
    ):
        await soon(asked.wait())
        writer.transport.abort()
        await eventually(lambda: len(answers) == 2)
    assert answers == [False, True]


async def test_a_route_that_must_finish_does(http):
    app, ending, go_on, records = FastAPI(), Ending(), asyncio.Event(), []
    gated(app, records=records)

    @app.get("/")
    @finish
    async def work():
        async with ending:
            await go_on.wait()

    async with (
        served(app, http=http) as (_, server),
        connected(server, request_of("/")) as (_, writer),
    ):
        await soon(ending.begun.wait())
        writer.transport.abort()
        await eventually(lambda: not server.server_state.connections)
        # A request beside it that comes and goes shows that the sweep has been there.
        other = Ending()

        @app.get("/other")
        async def hang():
            async with other:
                await forever()

        async with connected(server, request_of("/other")) as (_, second):
            await soon(other.begun.wait())
            second.transport.abort()
            await soon(other.over.wait())
        assert not ending.over.is_set()
        go_on.set()
        await soon(ending.over.wait())
        assert ending.error is None
        await eventually(lambda: len(records) == 2)
        assert records[1].cause == ""


async def test_the_stream_of_a_route_that_must_finish_does_too(http):
    app, ending, go_on = FastAPI(), Ending(), asyncio.Event()
    gate = gated(app)

    @app.get("/")
    @finish
    async def work():
        async def body():
            async with ending:
                yield b"part"
                await go_on.wait()
                yield b"last"

        return StreamingResponse(body())

    async with (
        served(app, http=http) as (_, server),
        connected(server, request_of("/")) as (reader, writer),
    ):
        await soon(reader.readuntil(b"part"))
        writer.transport.abort()
        await eventually(lambda: not server.server_state.connections)
        await asyncio.sleep(0.1)  # two looks of the reaper, and Starlette's own: nothing is to happen
        assert not ending.over.is_set()
        go_on.set()
        await soon(ending.over.wait())
        assert ending.error is None
        await eventually(lambda: gate.running == 0)


async def test_an_upload_that_breaks_off_is_told_to_a_route_that_must_finish(http):
    app, ending = FastAPI(), Ending()
    gated(app)

    @app.post("/")
    @finish
    async def read(request: Request):
        async with ending:
            await request.body()

    half = request_of("/", method="POST", headers=["Content-Length: 1000"], body=b"x" * 500)
    async with served(app, http=http) as (_, server), connected(server, half) as (_, writer):
        await soon(ending.begun.wait())
        writer.transport.abort()
        await soon(ending.over.wait())
    assert ending.error is ClientDisconnect


async def test_background_tasks_outlive_the_client(http):
    app, ending = FastAPI(), Ending()
    gate = gated(app)

    async def later():
        async with ending:
            await asyncio.sleep(0.2)

    @app.get("/")
    async def answer(tasks: BackgroundTasks):
        tasks.add_task(later)

    async with (
        served(app, http=http) as (_, server),
        connected(server, request_of("/")) as (reader, writer),
    ):
        await soon(reader.readuntil(b"null"))
        writer.transport.abort()
        await soon(ending.over.wait())
        assert ending.error is None
        await eventually(lambda: gate.running == 0)


async def test_pipelined_requests_are_all_answered_and_the_running_one_is_cancelled(http):
    app, ending = FastAPI(), Ending()
    gate = gated(app)

    @app.get("/quick/{number}")
    async def quick(number: int):
        return f"answer {number}"

    @app.get("/hang")
    async def hang():
        async with ending:
            await forever()

    async with (
        served(app, http=http) as (_, server),
        Metronome() as metronome,
        connected(server, request_of("/quick/1") + request_of("/quick/2")) as (reader, writer),
    ):
        await soon(reader.readuntil(b"answer 1"))
        await soon(reader.readuntil(b"answer 2"))
        writer.write(request_of("/hang") + request_of("/quick/3"))
        assert await go_and_measure(ending, writer, metronome) < LATE
        await eventually(lambda: gate.running == 0)


async def test_a_pipelined_stream_is_cancelled_although_uvicorn_tells_the_next_request(http):
    app, ending = FastAPI(), Ending()
    gated(app)

    @app.get("/stream")
    async def stream():
        async def body():
            async with ending:
                yield b"part"
                await forever()

        return StreamingResponse(body())

    async with (
        served(app, http=http) as (_, server),
        Metronome() as metronome,
        connected(server, request_of("/stream") + request_of("/stream")) as (reader, writer),
    ):
        await soon(reader.readuntil(b"part"))
        assert await go_and_measure(ending, writer, metronome) < LATE


async def test_http_1_0(http):
    app, ending = FastAPI(), Ending()
    gated(app)

    @app.get("/")
    async def answer():
        return "all"

    @app.get("/hang")
    async def hang():
        async with ending:
            await forever()

    async with served(app, http=http) as (_, server), Metronome() as metronome:
        async with connected(server, request_of("/", version="1.0")) as (reader, _):
            assert (await soon(reader.read())).endswith(b'"all"')
        async with connected(server, request_of("/hang", version="1.0")) as (_, writer):
            assert await go_and_measure(ending, writer, metronome) < LATE


async def test_requests_start_no_task_and_no_timer_of_their_own(http):
    app, begun, hold = FastAPI(), [], asyncio.Event()
    gate = gated(app)

    @app.get("/")
    async def wait():
        begun.append(None)
        await hold.wait()
        return len(asyncio.all_tasks())

    async with served(app, http=http) as (session, server):
        timers, loop = [], asyncio.get_running_loop()

        async def get():
            async with session.get("/") as answer:
                return await answer.json()

        clients = [asyncio.create_task(get()) for _ in range(50)]
        await eventually(lambda: len(begun) == 50)
        timers.append(gate._reaper._timer)
        await eventually(lambda: gate._reaper._timer is not timers[0])  # looked at them once
        requests = server.server_state.tasks
        others = asyncio.all_tasks() - requests - set(clients)
        assert len(requests) == 50
        # This test, the server, the runner and aiohttp's client: nothing per request.
        assert len(others) < 10
        hold.set()
        await asyncio.gather(*clients)
        await eventually(lambda: gate._reaper._timer is None)
        assert loop.is_running()


@contextlib.asynccontextmanager
async def served_by_hypercorn(app):
    """Give the port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 1
    over = asyncio.Event()
    running = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))

    async def listens():
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(listens)
        yield port
    finally:
        over.set()
        await soon(running, 10)


async def test_another_server_tells_by_reading_ahead():
    app = FastAPI()
    ending, second, go_on, records = Ending(), Ending(), asyncio.Event(), []
    gate = gated(app, records=records)

    @app.get("/")
    async def hang():
        async with ending:
            await forever()

    @app.post("/body")
    async def read_later(request: Request):
        async with second:
            await go_on.wait()
        return len(await request.body())

    async with served_by_hypercorn(app) as port:
        async with Metronome() as metronome:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_of("/"))
            assert await go_and_measure(ending, writer, metronome) < LATE
            await eventually(lambda: gate.running == 0)
            assert (records[0].status, records[0].cause) == (499, "disconnect")

        # What was read ahead is handed to the app, in its order, and all of it.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        size = 500_000
        writer.write(
            request_of("/body", method="POST", headers=[f"Content-Length: {size}"], body=b"x" * size)
        )
        await soon(second.begun.wait())
        (exchange,) = gate._reaper
        assert isinstance(exchange._connection, ReadAhead)
        await eventually(lambda: exchange._connection._size > 0)
        go_on.set()
        await soon(reader.readuntil(str(size).encode()))
        writer.close()
        await eventually(lambda: gate.running == 0)
        assert records[1].status == 200


class Http2Client:
    """An HTTP/2 connection, by prior knowledge, that sees each frame."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer
        self._http = H2Connection()
        self._http.initiate_connection()
        self._events = deque()

    def ask(self, path):
        """Send a request; return the number of its stream."""
        stream = self._http.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "http", ":authority": "test", ":path": path}
        self._http.send_headers(stream, list(headers.items()), end_stream=True)
        self._flush()
        return stream

    def reset(self, stream):
        self._http.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()

    async def wait_for(self, kind, stream):
        """Return the next event of this kind on this stream."""
        while True:
            while self._events:
                event = self._events.popleft()
                if type(event) is kind and event.stream_id == stream:
                    return event
            data = await self._reader.read(65536)
            assert data, "the server has closed the connection"
            self._events.extend(self._http.receive_data(data))
            self._flush()

    def _flush(self):
        self._writer.write(self._http.data_to_send())


@contextlib.asynccontextmanager
async def connected_by_http2(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Http2Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_stream_of_http_2_that_its_client_resets_is_cancelled_and_its_neighbours_are_not():
    app, records = FastAPI(), []
    endings = {name: Ending() for name in ("answer", "stream", "neighbour")}
    go_on = asyncio.Event()
    gate = gated(app, records=records)

    @app.get("/answer")
    async def answer():
        async with endings["answer"]:
            await forever()

    @app.get("/stream")
    async def stream():
        async def body():
            yield b"part"
            async with endings["stream"]:
                await forever()

        return StreamingResponse(body())

    @app.get("/neighbour")
    async def neighbour(request: Request):
        async with endings["neighbour"]:
            await go_on.wait()
        return request.scope["http_version"]

    async with (
        served_by_hypercorn(app) as port,
        connected_by_http2(port) as client,
        Metronome() as metronome,
    ):
        streams = {name: client.ask("/" + name) for name in endings}
        await soon(client.wait_for(DataReceived, streams["stream"]))
        for name in ("answer", "stream"):
            await soon(endings[name].begun.wait())
            reset = time.monotonic()
            client.reset(streams[name])
            await soon(endings[name].over.wait())
            assert endings[name].error is asyncio.CancelledError
            assert endings[name].at - reset - metronome.late < LATE
        await eventually(lambda: gate.running == 1)
        assert [record.route for record in records] == ["/answer", "/stream"]
        assert records[0].cause == "disconnect"  # of the other, Starlette's stream itself was told first
        go_on.set()
        data = await soon(client.wait_for(DataReceived, streams["neighbour"]))
        assert data.data == b'"2"'
        assert endings["neighbour"].error is None


async def test_a_connection_of_http_2_that_is_gone_cancels_all_its_streams():
    app, endings = FastAPI(), [Ending(), Ending()]
    gate = gated(app)

    @app.get("/{number}")
    async def hang(number: int):
        async with endings[number]:
            await forever()

    async with served_by_hypercorn(app) as port, Metronome() as metronome:
        async with connected_by_http2(port) as client:
            for number, ending in enumerate(endings):
                client.ask(f"/{number}")
                await soon(ending.begun.wait())
            gone = time.monotonic()
        for ending in endings:
            await soon(ending.over.wait())
            assert ending.error is asyncio.CancelledError
            assert ending.at - gone - metronome.late < LATE
        await eventually(lambda: gate.running == 0)


async def test_reading_ahead_hands_on_order_and_errors():
    messages = asyncio.Queue()

    async def receive():
        message = await messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    ahead = ReadAhead(receive)
    assert not ahead.disconnected
    for number in range(3):
        messages.put_nowait({"type": "http.request", "body": b"%d" % number, "more_body": number < 2})
    await eventually(messages.empty)
    assert [(await ahead.receive())["body"] for _ in range(3)] == [b"0", b"1", b"2"]
    waiting = asyncio.create_task(ahead.receive())
    messages.put_nowait(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await soon(waiting)
    ahead.close()

    ahead = ReadAhead(receive)
    messages.put_nowait({"type": "http.disconnect"})
    assert not ahead.disconnected
    await eventually(lambda: ahead.disconnected)
    for _ in range(2):  # told as often as it is asked
        assert await soon(ahead.receive()) == {"type": "http.disconnect"}


async def test_reading_ahead_is_bounded():
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    ahead = ReadAhead(receive)
    assert not ahead.disconnected
    await eventually(lambda: taken == 7)
    for _ in range(100):
        await asyncio.sleep(0)
    assert taken == 7
    await ahead.receive()
    await eventually(lambda: taken == 8)
    ahead.close()


def linger_not(writer):
    """Let it close with a reset in place of an orderly end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
