"""Whatever an upstream does wrong: the right error, within its bound, and nothing left behind."""

import asyncio
import gzip
import os
import ssl
import sys
import time
import zlib
from contextlib import asynccontextmanager

import brotli
import pytest
import trustme

from freeloop.errors import (
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound import AiohttpTransport, Client
from freeloop.outbound.aiohttp_connection import _Connection
from freeloop.outbound.redirects import Redirects
from freeloop.outbound.url_policy import UrlGuard, UrlPolicy
from freeloop.testing import FaultyUpstream, eventually
from freeloop.testing.answers import ANSWERS, BODY, render, say

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEEDS = range(25)
TIMEOUT = 0.15
# How much later than its timeout a call may come back, on a machine that is busy with other tests.
LATE = 1.0
MAX_BODY = 200_000


@asynccontextmanager
async def calling(upstream, *, tls=None):
    """A client whose source is exempt from the URL policy; where it redirects to is not."""
    transport = AiohttpTransport(tls=tls)
    guard = UrlGuard(transport, policy=UrlPolicy(ports=None), exempt={"faulty": upstream.url})
    client = Client(Redirects(guard), timeout=TIMEOUT, max_body=MAX_BODY)
    try:
        yield client
    finally:
        await client.close()
        # Whatever was done to the connections, none outlives its client.
        async with asyncio.timeout(5):
            await upstream.wait_empty()


OUTCOMES = {
    "hang": (UpstreamTimeout, "before it answered"),
    "hang-midway": (UpstreamTimeout, "time was up"),
    "drip": (UpstreamTimeout, r"after \d+ bytes of the body"),
    "drip-head": (UpstreamTimeout, "before it answered"),
    "close": (UpstreamUnreachable, "before it answered"),
    "reset": (UpstreamUnreachable, "before it answered"),
    "truncate-head": (UpstreamUnreachable, "before it answered"),
    "truncate": (UpstreamUnreachable, r"after \d+ bytes of the body"),
    "truncate-chunk": (UpstreamUnreachable, r"after \d+ bytes of the body"),
    "reset-midway": (UpstreamUnreachable, "broke the connection"),
    "garbage": (UpstreamBodyInvalid, "not HTTP"),
    "garbage-chunk": (UpstreamBodyInvalid, "not HTTP"),
    "endless-header": (UpstreamBodyInvalid, "not HTTP"),
    "endless": (UpstreamBodyInvalid, "more than the 200000 bytes"),
    "redirect-in-circles": (UpstreamStatus, "redirected in a circle"),
    "redirect-on/9": (UpstreamStatus, "redirected more than 5 times"),
    "redirect-to-loopback": (RedirectRefused, "expected a host of the public internet"),
    "bomb": (UpstreamBodyInvalid, "more than the 200000 bytes"),
    "not-gzip": (UpstreamBodyInvalid, "not compressed"),
}
# What brings a whole answer, wrong as the rest may be.
ANSWERED = {"ok": 200, "busy": 429, "extra": 200, "extra-large": 200, "extra-begun": 200}


def test_every_way_has_its_outcome():
    assert {name.partition("/")[0] for name in OUTCOMES} | set(ANSWERED) == set(ANSWERS)


@pytest.mark.parametrize("way", OUTCOMES)
async def test_what_goes_wrong_has_its_error_and_its_bound(way):
    error, text = OUTCOMES[way]
    for seed in SEEDS if error is not UpstreamTimeout else SEEDS[:4]:
        async with FaultyUpstream(seed=seed) as upstream, calling(upstream) as client:
            if way == "redirect-to-loopback":
                await _redirect_to_another(client, upstream)
                continue
            started = time.perf_counter()
            with pytest.raises(error, match=text) as caught:
                await client.get(f"{upstream.url}/{way}", source="faulty")
            took = time.perf_counter() - started
            assert took < TIMEOUT + LATE
            assert caught.value.source == "faulty"
            if error is UpstreamUnreachable:
                assert upstream.calls.total() == 1, "it was repeated without anybody's asking"
            # The same client goes on as if nothing had been.
            assert (await client.get(f"{upstream.url}/ok", source="faulty", timeout=5)).content == BODY


async def _redirect_to_another(client, upstream):
    """A source is trusted with its own origin; another port of loopback is another origin."""
    async with FaultyUpstream() as inner:
        upstream.script(
            "/away", say(render(b"", status="302 Found", headers=f"Location: {inner.url}/secret\r\n"))
        )
        with pytest.raises(RedirectRefused, match="expected a host of the public internet"):
            await client.get(f"{upstream.url}/away", source="faulty")
        assert inner.accepted == 0


@pytest.mark.parametrize("way", ANSWERED)
async def test_an_answer_is_complete_or_none(way):
    for seed in SEEDS:
        async with FaultyUpstream(seed=seed) as upstream, calling(upstream) as client:
            response = await client.get(f"{upstream.url}/{way}", source="faulty", timeout=5)
            assert response.status_code == ANSWERED[way]
            assert "nobody" not in response.text
            assert len(response.content) == int(response.headers["Content-Length"])


async def test_a_busy_upstream_says_when():
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        response = await client.get(f"{upstream.url}/busy", source="faulty", timeout=5)
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")


async def test_nobody_listens():
    # Not behind the policy: another port of loopback is not the source's own.
    async with FaultyUpstream() as upstream, Client(AiohttpTransport()) as client:
        with pytest.raises(UpstreamUnreachable, match="could not be reached"):
            await client.get(upstream.refusing_url, source="faulty", timeout=5)


def test_a_script_names_ways_that_there_are():
    with pytest.raises(ValueError, match="expected one or more of ok, hang"):
        FaultyUpstream().script("/x", "sulk")


async def test_a_script_is_played_in_turn():
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        upstream.script("/x", "close", "busy", "ok")
        with pytest.raises(UpstreamUnreachable):
            await client.post(f"{upstream.url}/x", source="faulty")
        seen = [(await client.get(f"{upstream.url}/x", source="faulty")).status_code for _ in range(3)]
    assert seen == [429, 200, 200]
    assert upstream.calls == {"/x": 4}


@pytest.mark.parametrize("way", ["extra", "extra-large", "extra-begun"])
async def test_an_answer_that_nobody_asked_for_is_nobodys(way):
    for seed in SEEDS:
        async with FaultyUpstream(seed=seed) as upstream, calling(upstream) as client:
            await client.get(f"{upstream.url}/{way}", source="faulty", timeout=5)
            response = await client.get(f"{upstream.url}/ok", source="faulty", timeout=5)
            assert response.content == BODY
            assert upstream.accepted == 2, "the connection was used again"


@pytest.mark.parametrize(
    "stray",
    [
        render(b"stray"),
        render(b"stray")[:20],
        b"H",
        b"\r\n",
        b"garbage",
        render(b"", status="408 Request Timeout", headers="Connection: close\r\n"),
    ],
    ids=["answer", "part of an answer", "one byte", "line end", "garbage", "408"],
)
async def test_what_comes_on_an_idle_connection_ends_it(stray):
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        for accepted in range(1, 11):
            response = await client.get(f"{upstream.url}/ok", source="faulty", timeout=5)
            assert (response.content, upstream.accepted) == (BODY, accepted)
            upstream.send_stray(stray)
            # The client's closing is the signal that it came.
            async with asyncio.timeout(5):
                await upstream.wait_empty()


async def test_what_a_server_says_before_it_is_asked_is_no_answer():
    gone = asyncio.Event()

    async def greet(reader, writer):
        writer.write(render(b"stray"))
        await reader.read()
        gone.set()
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server, asyncio.timeout(5):
        _, connection = await loop.create_connection(
            lambda: _Connection(loop), "127.0.0.1", server.sockets[0].getsockname()[1]
        )
        await eventually(lambda: connection._tail)
        connection.set_response_params()
        assert not connection.is_connected()
        assert not len(connection), "it stands in the queue of answers"
        await gone.wait()


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_a_stale_connection_costs_no_idempotent_call_its_answer(method, reset):
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        for _ in range(5):
            calls = [client.get(f"{upstream.url}/ok", source="faulty", timeout=5) for _ in range(10)]
            await asyncio.gather(*calls)
            # All of them, and before the client's loop hears of it: the request goes out on one of those.
            upstream.drop(reset=reset)
            response = await client.request(
                method, f"{upstream.url}/ok", content=b"x" * 10, source="faulty", timeout=5
            )
            assert response.status_code == 200
            seen = upstream.requests[-1]
            assert (seen.method, seen.content) == (method, b"x" * 10)


async def test_stale_connections_that_break_at_the_request():
    """The server has given up each idle connection, and shows it only when the next request comes."""
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        barrier = asyncio.Barrier(8)

        async def answer_together(exchange):
            await barrier.wait()
            return await say(render())(exchange)

        upstream.script("/fill", answer_together)
        await asyncio.gather(
            *[client.get(f"{upstream.url}/fill", source="faulty", timeout=5) for _ in range(8)]
        )
        assert upstream.connections == 8
        upstream.script("/x", *["close", "reset"] * 4, "ok")
        assert (await client.get(f"{upstream.url}/x", source="faulty", timeout=5)).content == BODY
        assert upstream.calls["/x"] == 9

        # A call that is not idempotent may have been done: it is the caller's to repeat.
        upstream.script("/x", "close")
        with pytest.raises(UpstreamUnreachable):
            await client.post(f"{upstream.url}/x", source="faulty", timeout=5)
        assert upstream.calls["/x"] == 10


async def test_a_connection_that_had_begun_to_answer_was_not_stale():
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        await client.get(f"{upstream.url}/ok", source="faulty")
        with pytest.raises(UpstreamUnreachable):
            await client.get(f"{upstream.url}/truncate-head", source="faulty")
        assert upstream.calls["/truncate-head"] == 1


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def tls(authority):
    def build():
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        return server, client

    return await asyncio.to_thread(build)  # it reads files


async def _cancel_quickly(call, upstream):
    """Cancel, and return how long the upstream's side of the connection took to hear of it."""
    call.cancel()
    started = time.perf_counter()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        await upstream.wait_empty()
    return time.perf_counter() - started


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("way", ["hang", "hang-midway", "drip"])
async def test_a_cancelled_call_frees_its_socket_at_once(way, secure, tls):
    server, trust = tls if secure else (None, None)
    async with FaultyUpstream(tls=server) as upstream, calling(upstream, tls=trust) as client:
        took = []
        for number in range(20):
            call = asyncio.create_task(client.get(f"{upstream.url}/{way}", source="faulty", timeout=60))
            await eventually(lambda number=number: upstream.calls[f"/{way}"] > number)
            took.append(await _cancel_quickly(call, upstream))
    # The middle one: another process may take the processor at any time.
    assert sorted(took)[len(took) // 2] < 0.01


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def test_a_cancelled_upload_is_cut_off():
    """An orderly close would wait until the server has taken all that was written: this one never does."""
    over = asyncio.Event()

    async def read_nothing(reader, writer):
        writer.transport.pause_reading()
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(read_nothing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    transport = AiohttpTransport()
    async with server, Client(transport) as client:
        call = asyncio.create_task(client.post(url, content=b"x" * (32 * 2**20), timeout=60))
        await eventually(lambda: transport._sessions)
        pool = transport._sessions[False].connector
        # Until the kernel holds what it can hold, and the rest has to wait.
        await eventually(lambda: [1 for each in pool._acquired if each.transport and each.writing_paused])
        (connection,) = pool._acquired
        descriptor = connection.transport.get_extra_info("socket").fileno()
        call.cancel()
        started = time.perf_counter()
        with pytest.raises(asyncio.CancelledError):
            await call
        while is_open(descriptor):
            assert time.perf_counter() - started < 1, "the socket is still open"
            await asyncio.sleep(0)
        took = time.perf_counter() - started
        over.set()
    assert took < 0.01


async def test_a_call_cancelled_in_the_tls_handshake_frees_its_socket():
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader, writer):
        arrived.set()
        while await reader.read(1000):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server, Client(AiohttpTransport()) as client:
        port = server.sockets[0].getsockname()[1]
        call = asyncio.create_task(client.get(f"https://127.0.0.1:{port}/", timeout=60))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(5):
            await gone.wait()


def _pack(encoding, size):
    match encoding:
        case "gzip":
            return gzip.compress(b"\0" * size)
        case "deflate":
            return zlib.compress(b"\0" * size)
        case "gzip of gzip members":
            return gzip.compress(b"\0" * 100_000) * (size // 100_000)
        case "br":
            return brotli.compress(b"\0" * size)
        case "zstd":
            return zstd.compress(b"\0" * size)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip of gzip members", "br", "zstd"])
async def test_a_bomb_is_unpacked_only_as_far_as_it_may_be(encoding):
    packed = await asyncio.to_thread(_pack, encoding, 64 * 2**20)
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        upstream.script("/x", say(render(packed, headers=f"Content-Encoding: {encoding.split()[0]}\r\n")))
        started = time.process_time()
        with pytest.raises(UpstreamBodyInvalid, match="more than the 200000 bytes"):
            await client.get(f"{upstream.url}/x", source="faulty", timeout=5)
        assert time.process_time() - started < 0.5


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "snappy"])
async def test_an_encoding_that_nobody_asked_for(encoding):
    """Where its library is missing, the answer is unusable, or it is left as it is: never a crash."""
    async with FaultyUpstream() as upstream, calling(upstream) as client:
        upstream.script("/x", say(render(b"abcde", headers=f"Content-Encoding: {encoding}\r\n")))
        try:
            response = await client.get(f"{upstream.url}/x", source="faulty", timeout=5)
        except UpstreamBodyInvalid:
            return
        assert response.content == b"abcde"
