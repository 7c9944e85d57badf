"""Answers that are read while they come, and bodies that are sent while they are made."""

import asyncio
import gc
import gzip
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.errors import (
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound.aiohttp_transport import AiohttpTransport
from freeloop.outbound.body import Body
from freeloop.outbound.breaker import Breaker, CircuitBreaker
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.outbound.cache import Cache
from freeloop.outbound.client import Client
from freeloop.outbound.coalesce import Coalesce
from freeloop.outbound.hedge import Hedge
from freeloop.outbound.redirects import Redirects
from freeloop.outbound.response import Response
from freeloop.outbound.retry import Retry, RetryPolicy
from freeloop.outbound.sources import Sources
from freeloop.outbound.streaming import StreamedResponse
from freeloop.outbound.transport import OutboundRequest
from freeloop.scope import Scope
from freeloop.testing import eventually
from freeloop.testing.answers import BODY, render, say

PART = b"x" * 2**16
PARTS = 1024
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def upstream(upstream):
    yield upstream
    # Nothing is left behind, however a stream ended.
    async with asyncio.timeout(5):
        await upstream.wait_empty()


@pytest.fixture
async def client(upstream):
    async with Client(AiohttpTransport(), timeout=5) as client:
        yield client


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


class Tap:
    """An answer whose parts the test lets out."""

    def __init__(self):
        self.parts = asyncio.Queue()

    async def play(self, exchange):
        await exchange.send(CHUNKED)
        leaving = asyncio.create_task(exchange.wait_for_close())
        while True:
            next_part = asyncio.create_task(self.parts.get())
            await asyncio.wait((leaving, next_part), return_when="FIRST_COMPLETED")
            if leaving.done():
                next_part.cancel()
                return False
            part = await next_part
            if not part:
                leaving.cancel()
                await asyncio.wait((leaving,))  # it reads from the connection, which goes on
            await exchange.send(chunk(part))
            if not part:
                return True


@pytest.fixture
def tap(upstream):
    tap = Tap()
    upstream.script("/tap", tap.play)
    return tap


async def test_parts_come_as_they_are_sent_and_the_connection_is_used_again(client, upstream, tap):
    for _ in range(3):
        async with client.stream("GET", f"{upstream.url}/tap") as response:
            assert (response.status_code, response.headers["transfer-encoding"]) == (200, "chunked")
            assert response.url == f"{upstream.url}/tap"
            parts = response.aiter_bytes()
            for part in (b"one", b"two"):
                tap.parts.put_nowait(part)
                assert await anext(parts) == part
            tap.parts.put_nowait(b"")
            assert [part async for part in parts] == []
            assert [part async for part in response.aiter_bytes()] == []
    assert upstream.accepted == 1


async def test_the_whole_body_at_the_end(client, upstream):
    async with client.stream("GET", f"{upstream.url}/ok") as response:
        with pytest.raises(RuntimeError, match=r"await response\.aread"):
            _ = response.content
        assert await response.aread() == await response.aread() == response.content == BODY
        assert response.json() == {"answer": "as asked for"}
        assert response.text == BODY.decode()
        response.raise_for_status()
    upstream.script("/bad", say(render(b"why", status="404 Not Found")))
    async with client.stream("GET", f"{upstream.url}/bad") as response:
        with pytest.raises(UpstreamStatus, match="status 404"):
            response.raise_for_status()
        assert await response.aread() == b"why"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_an_answer_without_a_body(client, upstream, method):
    upstream.script("/none", say(render(b"", status="204 No Content")))
    async with client.stream(method, f"{upstream.url}/none") as response:
        assert [part async for part in response.aiter_bytes()] == []
    assert (await client.get(f"{upstream.url}/ok")).content == BODY
    assert upstream.accepted == 1


class Flood:
    """An answer of 64 MiB, which counts what the network has taken."""

    def __init__(self):
        self.sent = 0
        self.complete = asyncio.Event()

    async def play(self, exchange):
        await exchange.send(CHUNKED)
        for _ in range(PARTS):
            await exchange.send(chunk(PART))
            self.sent += len(PART)
        await exchange.send(chunk(b""))
        self.complete.set()
        return True


async def test_a_slow_reader_makes_the_upstream_wait(client, upstream):
    flood = Flood()
    upstream.script("/flood", flood.play)
    async with client.stream("GET", f"{upstream.url}/flood", max_body=PARTS * len(PART)) as response:
        connection = client._transport._sessions[False].connector
        (protocol,) = connection._acquired
        parts = response.aiter_bytes()
        received = len(await anext(parts))
        # From here on nothing is taken from the socket, and the kernel's buffers are bounded.
        await eventually(lambda: protocol._reading_paused)
        assert protocol._payload._size < 2**19
        held = -1
        while held != flood.sent:
            held = flood.sent
            await asyncio.wait({asyncio.create_task(flood.complete.wait())}, timeout=0.2)
        assert held < PARTS * len(PART) / 2
        assert protocol._payload._size < 2**19
        async for part in parts:
            received += len(part)
        assert received == PARTS * len(PART)
    assert flood.complete.is_set()


async def test_a_body_that_is_too_large(client, upstream):
    upstream.script("/large", say(render(b"x" * 300_000)))
    async with client.stream("GET", f"{upstream.url}/large", max_body=200_000) as response:
        with pytest.raises(UpstreamBodyInvalid, match="more than the 200000 bytes"):
            await response.aread()
        assert response._body.received <= 200_000 + 2**18
    async with client.stream("GET", f"{upstream.url}/large", max_body=300_000) as response:
        assert await response.aread() == b"x" * 300_000


async def test_a_bomb_is_unpacked_in_parts(client, upstream):
    packed = await asyncio.to_thread(gzip.compress, b"\0" * 2**26)
    upstream.script("/bomb", say(render(packed, headers="Content-Encoding: gzip\r\n")))
    async with client.stream("GET", f"{upstream.url}/bomb", max_body=2**26) as response:
        assert max([len(part) async for part in response.aiter_bytes()]) < 2**20


async def test_each_part_has_its_time(client, upstream, tap):
    async with client.stream("GET", f"{upstream.url}/tap", idle_timeout=0.1) as response:
        parts = response.aiter_bytes()
        tap.parts.put_nowait(b"one")
        assert await anext(parts) == b"one"
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout, match=r"nothing more for 0\.1 s, after 3 bytes") as caught:
            await anext(parts)
        assert 0.09 < time.monotonic() - started < 1
        assert caught.value.seconds == 0.1
        # Nobody reads on where a part is missing.
        with pytest.raises(UpstreamUnreachable, match="closed after 3 bytes"):
            await response.aread()


async def test_the_head_has_its_time(client, upstream):
    with pytest.raises(UpstreamTimeout, match="before it answered"):
        async with client.stream("GET", f"{upstream.url}/hang", timeout=0.1):
            pytest.fail("there was no answer")


async def test_a_connection_has_its_time():
    async def say_nothing(reader, writer):
        # To https: without a handshake the connection does not stand.
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, Client(AiohttpTransport(), timeout=60) as client:
        with pytest.raises(UpstreamUnreachable, match=r"no connection within 0\.1 s") as caught:
            async with client.stream("GET", url, connect_timeout=0.1):
                pytest.fail("there was no answer")
        assert not caught.value.sent


async def test_the_scopes_deadline_holds_for_all_parts_together(client, upstream, tap):
    scope = Scope("stream", seconds=0.3)
    scope.enter()
    try:
        async with client.stream("GET", f"{upstream.url}/tap") as response:
            assert [(lease.kind, lease.name) for lease in scope.leases] == [
                ("upstream", upstream.url),
                ("socket", upstream.url.removeprefix("http://")),
            ]
            parts = response.aiter_bytes()
            tap.parts.put_nowait(b"one")
            assert await anext(parts) == b"one"
            with pytest.raises(UpstreamTimeout, match="nothing more for 0"):
                await anext(parts)
            assert scope.leases == ()
        assert scope.remaining() < 0.01
        assert scope.times()["upstream"] > 0.2
    finally:
        scope.leave()


@pytest.mark.parametrize("way", ["drip", "endless", "hang", "drip-head"])
async def test_a_stream_may_have_a_time_for_all_of_it(client, upstream, way):
    """Also where each part comes in time, or faster than it can be read."""

    async def read():
        url = f"{upstream.url}/{way}"
        async with client.stream("GET", url, total_timeout=0.3, max_body=10**12) as response:
            async for _ in response.aiter_bytes():
                pass

    started = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        await read()
    assert 0.29 < time.monotonic() - started < 2


async def test_the_time_for_all_of_it_does_not_lengthen_the_others(client, upstream):
    with pytest.raises(UpstreamTimeout, match=r"within 0\.1 s: time was up before it answered"):
        async with client.stream("GET", f"{upstream.url}/hang", timeout=0.1, total_timeout=60):
            pytest.fail("there was no answer")
    with pytest.raises(ValueError, match="finite number of seconds over 0"):
        async with client.stream("GET", f"{upstream.url}/ok", total_timeout=0):
            pytest.fail("there was no call")


@pytest.mark.parametrize(("status", "success"), [(200, True), (299, True), (300, False), (404, False)])
async def test_names_that_httpx_has(client, upstream, status, success):
    upstream.script("/x", say(render(status=f"{status} X")))
    whole = await client.get(f"{upstream.url}/x")
    async with client.stream("GET", f"{upstream.url}/x") as streamed:
        for response in (whole, streamed):
            assert response.is_success is success
            assert timedelta() < response.elapsed < timedelta(seconds=5)


@pytest.mark.parametrize("how", ["leave", "raise", "cancel while reading", "cancel before the head"])
async def test_the_socket_is_free_at_once(client, upstream, tap, how):
    took = []
    for _ in range(20):
        reading = asyncio.Event()

        async def read(reading=reading):
            path = "hang" if how == "cancel before the head" else "tap"
            async with client.stream("GET", f"{upstream.url}/{path}") as response:
                parts = response.aiter_bytes()
                tap.parts.put_nowait(b"one")
                await anext(parts)
                reading.set()
                if how == "raise":
                    raise LookupError
                if how != "leave":
                    await anext(parts)

        task = asyncio.create_task(read())
        if how == "cancel before the head":
            await eventually(lambda: upstream.connections)
        else:
            await reading.wait()
        if how.startswith("cancel"):
            task.cancel()
        started = time.perf_counter()
        await asyncio.wait((task,))
        async with asyncio.timeout(5):
            await upstream.wait_empty()
        took.append(time.perf_counter() - started)
        assert (task.cancelled(), how) != (False, "cancel while reading")
        assert isinstance(None if task.cancelled() else task.exception(), LookupError) == (how == "raise")
    # The middle one: another process may take the processor at any time.
    assert sorted(took)[len(took) // 2] < 0.01


async def test_a_forgotten_stream_gives_everything_back(upstream, tap):
    async with AiohttpTransport_in_a_bulkhead(most=1) as layer:

        async def forget():
            request = OutboundRequest(
                method="GET", url=f"{upstream.url}/tap", timeout=5, max_body=100, stream=True
            )
            response = await layer.send(request)
            assert isinstance(response.body, Body)

        for _ in range(3):  # there is one slot: each has to be given back
            await asyncio.create_task(forget())
            gc.collect()
            async with asyncio.timeout(5):
                await upstream.wait_empty()


class AiohttpTransport_in_a_bulkhead(Bulkhead):  # noqa: N801 - reads as what it is
    def __init__(self, *, most):
        super().__init__(AiohttpTransport(), lambda _: Compartment(most=most, queue=10))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.close()


async def test_a_closed_client_ends_the_streams(client, upstream, tap):
    async with client.stream("GET", f"{upstream.url}/tap") as response:
        waiting = asyncio.create_task(response.aread())
        tap.parts.put_nowait(b"one")
        await eventually(lambda: response._body.received == 3)
        async with asyncio.timeout(1):
            await client.close()
            with pytest.raises(UpstreamUnreachable, match="the outbound client is closed"):
                await waiting
    with pytest.raises(UpstreamUnreachable, match="the outbound client is closed"):
        async with client.stream("GET", f"{upstream.url}/tap"):
            pytest.fail("there was no answer")


class FromParts:
    """Parts that are there already."""

    def __init__(self, parts):
        self.parts = [part for part in parts if part]

    async def read(self, seconds):
        return self.parts.pop(0) if self.parts else b""

    def close(self):
        self.parts = []


def answer_of(parts, content_type="text/plain"):
    request = OutboundRequest(method="GET", url="http://x/", timeout=1, max_body=10**6, stream=True)
    response = Response(
        status_code=200,
        headers={"Content-Type": content_type},
        content=b"",
        url="http://x/",
        request=request,
        body=Body(FromParts(parts), request),
    )
    return StreamedResponse(response, idle_timeout=1)


def cut(data, cuts):
    places = sorted({place % (len(data) + 1) for place in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.text(st.sampled_from("ab\r\n \u2028é\U0001f600")), st.lists(st.integers(0, 1000), max_size=20))
def test_lines_are_the_same_wherever_the_body_is_cut(text, cuts):
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines[-1]:
        lines.pop()

    async def read():
        parts = cut(text.encode(), cuts)
        assert [line async for line in answer_of(parts).aiter_lines()] == lines
        assert "".join([piece async for piece in answer_of(parts).aiter_text()]) == text

    asyncio.run(read())


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("text/plain; charset=iso-8859-1", "Ã©"),
        ("text/plain; charset=nonsense", "é"),
        ("text/plain; charset=hex", "é"),
        ("text/plain; charset=idna", "é"),
        ("text/plain; charset=undefined", "é"),
    ],
)
async def test_the_charset_of_a_stream_and_of_a_whole_answer(content_type, text):
    response = answer_of(["é".encode()], content_type)
    assert [piece async for piece in response.aiter_text()] == [text]
    response = answer_of(["é".encode()], content_type)
    await response.aread()
    assert response.text == text


# Uploads


async def take(exchange):
    """Give the parts of a chunked body."""
    while size := int(await exchange.reader.readuntil(b"\n"), 16):
        yield await exchange.reader.readexactly(size)
        await exchange.reader.readuntil(b"\n")
    await exchange.reader.readuntil(b"\n")


async def receive(exchange):
    """Read a body, and answer with it."""
    await exchange.send(render(b"".join([part async for part in take(exchange)])))
    return True


async def counted(made, parts=PARTS, part=PART):
    for _ in range(parts):
        made.append(len(part))
        yield part


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_body_is_sent_in_parts(client, upstream, streamed):
    upstream.script("/up", receive)
    made = []
    for _ in range(2):
        content = counted(made, parts=3, part=b"abc")
        if streamed:
            async with client.stream("PUT", f"{upstream.url}/up", content=content) as response:
                assert await response.aread() == b"abcabcabc"
        else:
            response = await client.request("PUT", f"{upstream.url}/up", content=content)
            assert response.content == b"abcabcabc"
    assert made == [3] * 6
    assert upstream.accepted == 1


async def test_a_slow_upstream_makes_the_upload_wait(client, upstream):
    resume, took = asyncio.Event(), 0

    async def take_slowly(exchange):
        nonlocal took
        await resume.wait()
        async for part in take(exchange):
            took += len(part)
        await exchange.send(render())
        return True

    upstream.script("/slow", take_slowly)
    made = []
    call = asyncio.create_task(
        client.request("PUT", f"{upstream.url}/slow", content=counted(made), timeout=30)
    )
    await eventually(lambda: upstream.calls["/slow"])
    pool = client._transport._sessions[False].connector
    await eventually(lambda: [1 for each in pool._acquired if each.transport and each.writing_paused])
    held = -1
    while held != len(made):
        held = len(made)
        await asyncio.wait({call}, timeout=0.2)
    assert held < PARTS / 2
    resume.set()
    assert (await call).content == BODY
    assert (len(made), took) == (PARTS, PARTS * len(PART))


async def test_an_answer_that_comes_before_the_upload_has_ended_ends_it(client, upstream):
    async def refuse(exchange):
        await exchange.reader.readexactly(10)
        await exchange.send(render(status="413 Content Too Large"))
        await exchange.wait_for_close()
        return False

    upstream.script("/up", refuse)
    async with asyncio.timeout(10):
        for call in (client.request, stream_status(client)):
            stopped = asyncio.Event()

            async def rows(stopped=stopped):
                try:
                    yield b"x" * 10
                    await asyncio.Event().wait()  # the next row is long in coming
                finally:
                    stopped.set()

            response = await call("PUT", f"{upstream.url}/up", content=rows())
            assert response.status_code == 413
            await stopped.wait()
            await upstream.wait_empty()


def stream_status(client):
    async def call(*args, **options):
        async with client.stream(*args, **options) as response:
            assert await response.aread() == BODY
            return response

    return call


async def test_what_the_apps_own_iterator_raises_is_what_the_caller_gets(client, upstream):
    upstream.script("/up", receive)

    async def fail():
        yield b"abc"
        raise LookupError("the app's own")

    for call in (client.request, stream_whole(client)):
        with pytest.raises(LookupError, match="the app's own"):
            await call("PUT", f"{upstream.url}/up", content=fail())


def stream_whole(client):
    async def call(*args, **options):
        async with client.stream(*args, **options) as response:
            return await response.aread()

    return call


@pytest.mark.parametrize(
    ("length", "text"), [("5", "5 bytes.*got 3"), ("2", "2 bytes.*got 3 or more")], ids=["short", "long"]
)
async def test_a_body_that_is_not_as_long_as_it_claims(client, upstream, length, text):
    with pytest.raises(ValueError, match=text):
        await client.request(
            "PUT", f"{upstream.url}/up", content=counted([], 1, b"abc"), headers={"content-length": length}
        )
    with pytest.raises(TypeError, match="parts of the body as bytes, got <class 'str'>"):
        await client.request("PUT", f"{upstream.url}/up", content=counted([], 1, "abc"))


async def test_an_upload_that_was_begun_is_not_sent_again(upstream):
    upstream.script("/up", "close")
    layer = Retry(AiohttpTransport(), Sources(lambda _: RetryBudget()), policy=RetryPolicy(base=0))
    async with Client(layer, timeout=5) as client:
        for call in (client.request, stream_whole(client)):
            upstream.calls.clear()
            with pytest.raises(UpstreamUnreachable):
                await call("PUT", f"{upstream.url}/up", content=counted([], 1, b"abc"))
            assert upstream.calls["/up"] == 1


class RefusedOnce:
    """A transport whose first connection is refused: nothing listens there."""

    def __init__(self, upstream):
        self.transport = AiohttpTransport()
        self.close = self.transport.close
        self.urls = [f"{upstream.refusing_url}/up"]

    async def send(self, request):
        if self.urls:
            request = OutboundRequest(
                method=request.method,
                url=self.urls.pop(),
                timeout=request.timeout,
                max_body=request.max_body,
                content=request.content,
                stream=request.stream,
            )
        return await self.transport.send(request)


async def test_an_upload_that_was_not_begun_is(upstream):
    upstream.script("/up", receive)
    layer = Retry(RefusedOnce(upstream), Sources(lambda _: RetryBudget()), policy=RetryPolicy(base=0))
    async with Client(layer, timeout=5) as client:
        made = []
        content = await stream_whole(client)("POST", f"{upstream.url}/up", content=counted(made, 2, b"abc"))
    assert (content, made) == (b"abcabc", [3, 3])


async def test_a_redirect_that_asks_for_the_body_again_is_refused(upstream):
    async def send_on(exchange):
        assert [part async for part in take(exchange)] == [b"abc", b"abc"]
        status = exchange.target.rpartition("/")[2]
        await exchange.send(render(b"", status=f"{status} Elsewhere", headers="Location: /ok\r\n"))
        return True

    for status in (303, 307, 308):
        upstream.script(f"/{status}", send_on)
    async with Client(Redirects(AiohttpTransport()), timeout=5) as client:
        for call in (client.request, stream_whole(client)):
            for status in (307, 308):
                with pytest.raises(RedirectRefused, match=f"status {status}, which asks for its body again"):
                    await call("POST", f"{upstream.url}/{status}", content=counted([], 2, b"abc"))
            answer = await call("POST", f"{upstream.url}/303", content=counted([], 2, b"abc"))
            assert getattr(answer, "content", answer) == BODY


# Layers


async def test_a_redirect_of_a_stream_leaves_nothing_open(upstream):
    async with Client(Redirects(AiohttpTransport_in_a_bulkhead(most=1)), timeout=5) as client:
        async with client.stream("GET", f"{upstream.url}/redirect-on/3") as response:
            assert await response.aread() == BODY
        with pytest.raises(UpstreamStatus, match="in a circle"):
            await stream_whole(client)("GET", f"{upstream.url}/redirect-in-circles")
        upstream.script("/ftp", say(render(b"", status="302 Found", headers="Location: ftp://x/\r\n")))
        with pytest.raises(UpstreamBodyInvalid, match="not an http or https URL"):
            await stream_whole(client)("GET", f"{upstream.url}/ftp")
        assert await stream_whole(client)("GET", f"{upstream.url}/ok") == BODY


async def test_retries_come_before_the_head_and_hold_no_slot(upstream, tap):
    sleeping = asyncio.Event()

    def dice():
        sleeping.set()
        return 0.5

    bulkhead = AiohttpTransport_in_a_bulkhead(most=1)
    layer = Retry(
        bulkhead, Sources(lambda _: RetryBudget()), policy=RetryPolicy(base=0.2, longest=0.2), dice=dice
    )
    busy = say(render(b"x" * 10**6, status="503 Service Unavailable"))
    upstream.script("/busy", busy, "ok")
    async with Client(layer, timeout=5, max_body=2**21) as client:
        call = asyncio.create_task(stream_whole(client)("GET", f"{upstream.url}/busy"))
        await sleeping.wait()
        # The slot is free while the other call waits to go again, though nobody has read its first answer.
        assert (await client.get(f"{upstream.url}/ok")).content == BODY
        assert await call == BODY
        assert upstream.calls["/busy"] == 2

        # The last failure is an answer like any other, and whole.
        upstream.script("/busy", busy)
        assert await stream_whole(client)("GET", f"{upstream.url}/busy") == b"x" * 10**6
        assert upstream.calls["/busy"] == 5

        # An answer that has begun is not asked for again.
        with pytest.raises(UpstreamUnreachable, match=r"after \d+ bytes of the body"):
            await stream_whole(client)("GET", f"{upstream.url}/truncate")
        assert upstream.calls["/truncate"] == 1


async def test_a_stream_holds_its_slot_until_it_ends(upstream, tap):
    async with (
        Client(AiohttpTransport_in_a_bulkhead(most=1), timeout=5) as client,
        client.stream("GET", f"{upstream.url}/tap") as response,
    ):
        other = asyncio.create_task(client.get(f"{upstream.url}/ok"))
        tap.parts.put_nowait(b"one")
        parts = response.aiter_bytes()
        await anext(parts)
        assert upstream.calls["/ok"] == 0
        tap.parts.put_nowait(b"")
        assert [part async for part in parts] == []
        # The end of the body is the end, not that of the block.
        assert (await other).content == BODY


async def test_a_breaker_counts_streams_that_break(upstream):
    layer = CircuitBreaker(AiohttpTransport(), lambda _: Breaker(calls=4, pause=60))
    async with Client(layer, timeout=5) as client:
        for _ in range(2):
            assert await stream_whole(client)("GET", f"{upstream.url}/ok") == BODY
        (breaker,) = [breaker for _, breaker in layer.breakers]
        assert breaker.totals == (2, 0, 0)
        async with client.stream("GET", f"{upstream.url}/hang-midway"):
            assert breaker.totals == (2, 0, 0)  # it may still break
        assert breaker.totals == (3, 0, 0)
        for _ in range(3):
            with pytest.raises(UpstreamUnreachable):
                await stream_whole(client)("GET", f"{upstream.url}/reset-midway")
        assert breaker.state == "open"
        with pytest.raises(UpstreamSuspended):
            await stream_whole(client)("GET", f"{upstream.url}/ok")


async def test_a_probe_has_shown_enough_with_its_head(upstream, tap):
    now = 0.0
    layer = CircuitBreaker(AiohttpTransport(), lambda _: Breaker(calls=1), clock=lambda: now)
    async with Client(layer, timeout=5) as client:
        with pytest.raises(UpstreamUnreachable):
            await client.get(f"{upstream.url}/close")
        (breaker,) = [breaker for _, breaker in layer.breakers]
        assert breaker.state == "open"
        now = 10.0
        async with client.stream("GET", f"{upstream.url}/tap"):
            assert breaker.state == "closed"
            assert (await client.get(f"{upstream.url}/ok")).content == BODY


@pytest.mark.parametrize(
    "wrap",
    [
        lambda transport: Cache(transport, max_bytes=10**6),
        Coalesce,
        lambda transport: Hedge(transport, Sources(lambda _: RetryBudget())),
    ],
    ids=["cache", "coalesce", "hedge"],
)
async def test_layers_that_keep_whole_answers_let_streams_pass(upstream, wrap):
    upstream.script("/x", say(render(headers="Cache-Control: max-age=1000\r\n")))
    async with Client(wrap(AiohttpTransport()), timeout=5) as client:
        call = stream_whole(client)
        assert await asyncio.gather(*[call("GET", f"{upstream.url}/x") for _ in range(3)]) == [BODY] * 3
        assert upstream.calls["/x"] == 3
