"""Outbound calls against an upstream of our own on a real socket, which misbehaves on demand."""

import asyncio
import contextlib
import gzip
import math
import socket
import ssl
from dataclasses import dataclass, field, replace

import pytest

from freeloop.errors import (
    OutboundError,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound import AiohttpTransport, Client, OutboundRequest, Response, Source
from freeloop.outbound.json_text import check_json, decode_json
from freeloop.outbound.redirects import Redirects
from freeloop.outbound.transport import redact_url
from freeloop.testing import eventually
from serving import EARLY

BOUND = 10.0
FOREVER = 3600.0


def http(body=b"", *, status="200 OK", headers="", length=None):
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n{headers}\r\n"
    return head.encode() + body


@dataclass
class Upstream:
    """Answers each request with what ``answer`` holds; a function of the connection instead plays freely."""

    answer: object = b""
    requests: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    closed_by_client: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    url: str = ""

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            while True:
                self.requests.append(await self.read(reader))
                self.arrived.set()
                if callable(self.answer):
                    await self.answer(reader, writer)
                    return
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_by_client.set()
        finally:
            writer.close()

    async def read(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        return head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")


@contextlib.asynccontextmanager
async def served(upstream):
    server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()


@pytest.fixture
async def upstream():
    async with asyncio.timeout(60), served(Upstream()) as upstream:
        yield upstream


@pytest.fixture
async def client():
    async with Client(Redirects(AiohttpTransport()), timeout=BOUND, max_body=100_000) as client:
        yield client


async def hang(reader, writer):
    await reader.read()  # until the client closes


async def say_nothing(reader, writer):
    await asyncio.Event().wait()


def drip(head):
    async def play(reader, writer):
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():  # uvloop's raises RuntimeError then
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)

    return play


def then_close(data):
    async def play(reader, writer):
        writer.write(data)
        await writer.drain()

    return play


async def reset(reader, writer):
    # With a linger time of 0 the close sends RST.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def test_a_get_brings_status_headers_and_body(client, upstream):
    upstream.answer = http("grün".encode(), status="404 Not Found", headers="X-Kind: small\r\n")
    response = await client.get(upstream.url + "/a?b=c", headers={"X-Sent": "1"})
    assert (response.status_code, response.text, response.headers["x-kind"]) == (404, "grün", "small")
    assert response.url == upstream.url + "/a?b=c"
    assert upstream.requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"\r\nX-Sent: 1\r\n" in upstream.requests[0]


async def test_a_post_sends_json_or_content(client, upstream):
    upstream.answer = http(b"{}")
    await client.post(upstream.url, json={"a": 1})
    await client.post(upstream.url, content=b"raw", headers={"content-type": "text/x"})
    assert upstream.requests[0].endswith(b'\r\n\r\n{"a":1}')
    assert b"Content-Type: application/json\r\n" in upstream.requests[0]
    assert upstream.requests[1].endswith(b"\r\n\r\nraw")
    with pytest.raises(ValueError, match="not both"):
        await client.post(upstream.url, json=1, content=b"1")


async def test_a_large_body_is_sent_completely(client, upstream):
    upstream.answer = http(b"{}")
    await client.post(upstream.url, content=b"x" * (3 * 2**20))
    assert upstream.requests[0].endswith(b"\r\n\r\n" + b"x" * (3 * 2**20))


async def test_calls_share_one_connection(client, upstream):
    upstream.answer = http(b"1")
    for _ in range(5):
        await client.get(upstream.url)
    assert upstream.connections == 1


@pytest.mark.parametrize("limits", [{"limit": 2}, {"limit_per_host": 2}])
async def test_no_more_connections_than_allowed(upstream, limits):
    upstream.answer = http(b"1")
    async with Client(AiohttpTransport(**limits), timeout=BOUND) as client:
        await asyncio.gather(*[client.get(upstream.url) for _ in range(20)])
    assert len(upstream.requests) == 20
    assert upstream.connections <= 2


async def test_the_pool_holds_up_nothing_that_a_source_lets_through(upstream):
    upstream.answer = hang
    most = Source().concurrency
    async with Client(AiohttpTransport(), timeout=FOREVER) as client:
        calls = [asyncio.create_task(client.get(upstream.url)) for _ in range(most)]
        await eventually(lambda: len(upstream.requests) == most)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


@pytest.mark.parametrize("status", ["101 Switching Protocols", "099 X", "000 X"])
async def test_a_connection_is_not_used_after_an_answer_that_is_none(client, upstream, status):
    """101 begins another protocol, and the others are unknown: what follows is not the next answer."""
    first, second = http(b"hello", status=status), http(b"for nobody")
    for answer in (first, first + second):
        upstream.answer = answer
        before = upstream.connections
        assert (await client.get(upstream.url)).status_code == int(status[:3])
        upstream.answer = http(b"asked for")
        assert (await client.get(upstream.url)).content == b"asked for"
        assert upstream.connections > before


async def test_waiting_for_a_connection_counts_against_the_time(upstream):
    upstream.answer = hang
    async with Client(AiohttpTransport(limit=1, limit_per_host=1), timeout=FOREVER) as client:
        first = asyncio.create_task(client.get(upstream.url))
        await upstream.arrived.wait()
        with pytest.raises(UpstreamTimeout):
            await client.get(upstream.url, timeout=0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert upstream.connections == 1


async def test_cookies_are_not_kept(client, upstream):
    upstream.answer = http(headers="Set-Cookie: session=secret\r\n")
    await client.get(upstream.url)
    await client.get(upstream.url)
    assert b"cookie" not in upstream.requests[1].lower()


async def test_the_environment_names_no_proxy(client, upstream, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    upstream.answer = http(b"1")
    assert (await client.get(upstream.url)).status_code == 200


async def test_no_tls_context_is_built_in_the_loop(client, monkeypatch):
    def build(*_, **__):
        raise AssertionError("certificates are read from disk in the loop")

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", build)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", build)

    async def speak_plain(reader, writer):
        await reader.read(100)
        writer.write(b"this is not TLS")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak_plain, "127.0.0.1", 0)
    async with server:
        with pytest.raises(UpstreamUnreachable):
            await client.get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")


async def test_nothing_listens(client):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(UpstreamUnreachable) as caught:
            await client.get(f"http://127.0.0.1:{port}/x", source="posts")
    assert caught.value.detail.startswith(
        f"source 'posts' (GET http://127.0.0.1:{port}/x) could not be reached: Connect"
    )
    assert caught.value.source == "posts"


async def test_no_such_host(client):
    with pytest.raises(UpstreamUnreachable, match="could not be reached"):
        await client.get("http://no-such-host.invalid/")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (then_close(b""), "before it answered"),
        (reset, "before it answered"),
        (then_close(b"HTTP/1.1 200 OK\r\nContent-Le"), "before it answered"),
        (then_close(http(b"abc", length=10)), "after 3 bytes of the body"),
        (then_close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), "of the body"),
    ],
    ids=["closed", "reset", "truncated head", "truncated body", "truncated chunk"],
)
async def test_a_connection_that_breaks(client, upstream, answer, reason):
    upstream.answer = answer
    with pytest.raises(UpstreamUnreachable, match=reason):
        await client.post(upstream.url)
    assert len(upstream.requests) == 1, "a POST must not be repeated"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hang, "before it answered"),
        (drip(b"HTTP/1.1 200 OK\r\nX-Long: "), "before it answered"),
        (drip(http(length=50_000)), r"after \d+ bytes of the body"),
    ],
    ids=["hangs", "drips its head", "drips its body"],
)
async def test_time_is_up(client, upstream, answer, reason):
    upstream.answer = answer
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(UpstreamTimeout, match=rf"within 0\.2 s: time was up {reason}"):
        await client.get(upstream.url, timeout=0.2)
    assert 0.2 - EARLY <= loop.time() - started < 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"\x00\x01SSH-2.0\r\n\r\n", "not HTTP: Bad status line$"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nab\r\n0\r\n\r\n", "not HTTP"),
        (http(b"abcde", headers="Content-Encoding: gzip\r\n"), "not compressed"),
    ],
    ids=["not HTTP", "endless header", "wrong chunk", "not gzip"],
)
async def test_an_unusable_answer(client, upstream, answer, reason):
    upstream.answer = answer
    with pytest.raises(UpstreamBodyInvalid, match=reason):
        await client.get(upstream.url)


async def endless(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"x" * 1000)
            await writer.drain()


@pytest.mark.parametrize(
    "answer",
    [
        http(b"x" * 3_000_000),
        endless,
        http(gzip.compress(b"x" * 5_000_000), headers="Content-Encoding: gzip\r\n"),
    ],
    ids=["announced", "endless", "compressed"],
)
async def test_a_body_too_large(client, upstream, answer):
    upstream.answer = answer
    with pytest.raises(UpstreamBodyInvalid, match="more than the 100000 bytes"):
        await client.get(upstream.url)
    upstream.answer = http(b"x" * 100_000)
    assert len((await client.get(upstream.url)).content) == 100_000
    assert upstream.connections == 2, "what was not read must not be taken for the next answer"


@pytest.mark.parametrize("answer", [say_nothing, drip(http(length=50_000))], ids=["hangs", "drips"])
async def test_cancelling_a_call_closes_its_socket(client, upstream, answer):
    async def play(reader, writer):
        playing = asyncio.create_task(answer(reader, writer))
        # The end of the stream, or a reset where the client left bytes unread.
        with contextlib.suppress(ConnectionError):
            await reader.read()
        upstream.closed_by_client.set()
        playing.cancel()

    upstream.answer = play
    call = asyncio.create_task(client.get(upstream.url))
    await upstream.arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(BOUND):
        await upstream.closed_by_client.wait()


async def test_closing_ends_calls_under_way_and_those_that_wait(upstream):
    upstream.answer = hang
    transport = AiohttpTransport(limit=1, limit_per_host=1)
    client = Client(transport, timeout=FOREVER)
    first = asyncio.create_task(client.get(upstream.url))
    await upstream.arrived.wait()
    second = asyncio.create_task(client.get(upstream.url))
    await eventually(lambda: transport._sessions[False].connector._waiters)
    async with asyncio.timeout(BOUND):
        await client.close()
        await client.close()
        ended = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(error) for error in ended] == [UpstreamUnreachable, UpstreamUnreachable]
    with pytest.raises(UpstreamUnreachable, match="client is closed"):
        await client.get(upstream.url)


async def test_an_error_status_is_raised_on_demand(client, upstream):
    upstream.answer = http(b"oops", status="503 Service Unavailable")
    response = await client.get(upstream.url + "/x?key=secret", source="posts")
    with pytest.raises(UpstreamStatus) as caught:
        response.raise_for_status()
    assert (caught.value.upstream_status, caught.value.source) == (503, "posts")
    assert caught.value.detail == (
        f"source 'posts' (GET {upstream.url}/x?key=…) answered with status 503 Service Unavailable"
    )
    replace(response, status_code=399).raise_for_status()


@pytest.mark.parametrize("url", ["", "/x", "http://", "ftp://h/", "http://h:99999/", "http://[::", "x"])
async def test_a_call_that_cannot_be_sent_is_the_callers_mistake(client, url):
    with pytest.raises(ValueError, match="expected an absolute http or https URL"):
        await client.get(url)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
async def test_every_call_has_a_bound(client, seconds):
    with pytest.raises(ValueError, match="finite"):
        Client(AiohttpTransport(), timeout=seconds)
    with pytest.raises(ValueError, match="finite"):
        await client.get("http://127.0.0.1:1/", timeout=seconds)


@pytest.mark.parametrize("limits", [{"limit": 0}, {"limit_per_host": 0}])
def test_no_limit_is_lifted_by_a_zero(limits):
    with pytest.raises(ValueError, match="1 or more"):
        AiohttpTransport(**limits)
    with pytest.raises(ValueError, match="1 byte or more"):
        Client(AiohttpTransport(), max_body=0)


@pytest.mark.parametrize(
    "answer",
    [
        then_close(http(b"abc", length=10)),
        hang,
        b"garbage\r\n\r\n",
        http(status="302 Found", headers="Location: /?key=secret\r\n"),
        http(status="302 Found", headers="Location: ftp://secret/\r\n"),
        http(status="302 Found", headers="Location: http://user:secret@/\r\n"),
    ],
)
async def test_no_error_shows_a_secret(client, upstream, answer):
    upstream.answer = answer
    url = upstream.url.replace("http://", "http://user:secret@") + "/x?token=secret#secret"
    with pytest.raises(OutboundError) as caught:
        await client.get(url, timeout=0.5)
    error = caught.value
    assert "secret" not in str(error)
    assert f"GET {upstream.url}/x?token=…" in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@a.example:8443/p/q?key=1&b=%20&c=#f", "https://a.example:8443/p/q?key=…&b=…"),
        ("http://a.example?token", "http://a.example?…"),
        ("http://a.example/?token&page=1", "http://a.example/?page=…"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("http://a.example/", "http://a.example/"),
        ("http://a.example:no/", "(a malformed URL)"),
        ("secret", "(a URL without scheme or host)"),
    ],
)
def test_a_url_in_a_message(url, shown):
    assert redact_url(url) == shown


def test_the_repr_of_a_call_and_its_answer_shows_no_secret():
    request = OutboundRequest(
        method="GET",
        url="http://u:secret@h/",
        timeout=1.0,
        max_body=1,
        headers={"Authorization": "secret"},
        content=b"secret",
    )
    response = Response(
        status_code=200, headers={"X": "secret"}, content=b"secret", url="secret", request=request
    )
    assert "secret" not in repr(response)
    assert "'GET'" in repr(response)


LARGE = b" " * 2**18  # from here on the check runs in a thread
VALID = [
    b"[]",
    b' {"b": 1, "a": 1.10, "a": 2}\n',
    b"123456789012345678901234567890",
    b"9" * 5000,
    b"1e999",
    rb'"\ud800"',
    b"[" * 900 + b"]" * 900,
]
INVALID = [b"", b"<html>", b"NaN", b"[Infinity]", b"{'a': 1}", b'"\xff"', b"[1] 2", b"[" * 200_000]


@pytest.mark.parametrize("space", [b"", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("content", VALID)
async def test_valid_json_passes_as_it_is(content, space):
    assert await check_json(content + space) == content + space
    assert await check_json(b"\xef\xbb\xbf" + content + space) == content + space


@pytest.mark.parametrize("space", [b"", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("content", [*INVALID, '{"a":1}'.encode("utf-16")])
async def test_anything_else_is_refused(content, space):
    with pytest.raises(ValueError, match=r".+"):
        await check_json(content + space)


@pytest.mark.parametrize("content", INVALID)
def test_decoding_refuses_the_same(content):
    with pytest.raises(ValueError, match=r".+"):
        decode_json(content)


async def test_decoding_is_exact(client, upstream):
    upstream.answer = http(b'\xef\xbb\xbf{"n": 123456789012345678901234567890}')
    response = await client.get(upstream.url)
    assert response.json() == {"n": 123456789012345678901234567890}


async def test_a_body_that_is_not_json_is_named(client, upstream):
    upstream.answer = http(b"<html>", headers="Content-Type: text/html\r\n")
    response = await client.get(upstream.url, source="posts")
    with pytest.raises(UpstreamBodyInvalid, match=r"source 'posts' .* JSON; 6 bytes came \(text/html\)"):
        response.json()
    with pytest.raises(UpstreamBodyInvalid, match=r"source 'posts' .* JSON; 6 bytes came \(text/html\)"):
        await response.json_bytes()


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("text/plain; charset=latin-1", b"\xfc", "ü"),
        ("text/plain", "ü".encode(), "ü"),
        ("text/plain; charset=unheard-of", "ü".encode(), "ü"),
        ("text/plain", b"\xff", "�"),
    ],
)
async def test_text_follows_the_charset(client, upstream, kind, content, text):
    upstream.answer = http(content, headers=f"Content-Type: {kind}\r\n")
    assert (await client.get(upstream.url)).text == text
