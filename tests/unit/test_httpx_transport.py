"""httpx2's client over ours, and over that the SDKs of OpenAI and Anthropic, in front of a real server."""

import asyncio
import gc
import gzip
import mimetypes
import subprocess
import sys
import time
from urllib.parse import parse_qsl

import anthropic
import httpx2
import openai
import orjson
import pytest

from freeloop.errors import (
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamBusy,
    UpstreamStatus,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.metrics import Metrics
from freeloop.outbound.aiohttp_transport import AiohttpTransport
from freeloop.outbound.breaker import Breaker, CircuitBreaker
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.outbound.client import Client
from freeloop.outbound.httpx_transport import HttpxTransport
from freeloop.outbound.layers import Stacks
from freeloop.outbound.redirects import Redirects
from freeloop.outbound.retry import Retry, RetryPolicy
from freeloop.outbound.sources import Sources
from freeloop.readings import list_outbound_readings
from freeloop.scope import Scope
from freeloop.source import Source
from freeloop.testing import FaultyUpstream, eventually
from freeloop.testing.answers import BODY, render, say

mimetypes.init()  # which httpx2 would do at the first upload of a file, in the loop
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.fixture
async def upstream(upstream):
    yield upstream
    async with asyncio.timeout(5):
        await upstream.wait_empty()


@pytest.fixture
async def client(upstream):
    """With one slot and no time between retries."""
    layer = Bulkhead(AiohttpTransport(), lambda _: Compartment(most=1, queue=1))
    layer = CircuitBreaker(layer, lambda _: Breaker(calls=10, pause=60))
    layer = Retry(layer, Sources(lambda _: RetryBudget()), policy=RetryPolicy(base=0))
    async with Client(Redirects(layer), timeout=5, max_body=10**6) as client:
        yield client


@pytest.fixture
async def http(client):
    async with httpx2.AsyncClient(transport=HttpxTransport(client)) as http:
        yield http


async def test_an_answer_and_its_connection(http, upstream):
    for _ in range(3):
        response = await http.get(f"{upstream.url}/ok", params={"a": "ü b"}, headers={"X-One": "1"})
        assert (response.status_code, response.content, response.json()) == (
            200,
            BODY,
            {"answer": "as asked for"},
        )
        seen = upstream.requests[-1]
        path, _, query = seen.target.partition("?")
        assert (path, parse_qsl(query)) == ("/ok", [("a", "ü b")])
        assert b"\r\nX-One: 1\r\n".lower() in seen.head.lower()
        assert seen.head.lower().count(b"\r\nhost:") == 1
    assert upstream.accepted == 1


async def test_headers_that_stand_several_times(http, upstream):
    upstream.script("/x", say(render(headers="Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n")))
    response = await http.get(f"{upstream.url}/x")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


async def test_what_we_have_unpacked_is_not_unpacked_again(http, upstream):
    upstream.script("/x", say(render(gzip.compress(BODY), headers="Content-Encoding: gzip\r\n")))
    response = await http.get(f"{upstream.url}/x")
    assert (response.content, "content-encoding" in response.headers) == (BODY, False)
    upstream.script("/x", say(render(BODY, headers="Content-Encoding: gzip, gzip\r\n")))
    with pytest.raises(httpx2.DecodingError):
        await http.get(f"{upstream.url}/x")


async def echo(exchange):
    if b"chunked" not in exchange.head:
        await exchange.send(render(exchange.content))
        return True
    body = b""
    while size := int(await exchange.reader.readuntil(b"\n"), 16):
        body += await exchange.reader.readexactly(size)
        await exchange.reader.readuntil(b"\n")
    await exchange.reader.readuntil(b"\n")
    await exchange.send(render(body))
    return True


async def test_bodies_at_once_in_parts_and_of_files(http, upstream):
    async def parts():
        yield b"abc"
        yield b"def"

    upstream.script("/echo", echo)
    url = f"{upstream.url}/echo"
    assert (await http.post(url, json={"a": 1})).json() == {"a": 1}
    assert (await http.post(url, content=parts())).content == b"abcdef"
    response = await http.post(url, files={"file": ("a.txt", b"in the file")}, data={"b": "c"})
    assert b"in the file" in response.content
    assert (await http.post(url)).content == b""
    assert upstream.accepted == 1


@pytest.mark.parametrize(
    ("way", "error", "cause"),
    [
        ("hang", httpx2.ReadTimeout, UpstreamTimeout),
        ("hang-midway", httpx2.ReadTimeout, UpstreamTimeout),
        ("reset-midway", httpx2.ReadError, UpstreamUnreachable),
        ("truncate", httpx2.ReadError, UpstreamUnreachable),
        ("close", httpx2.ReadError, UpstreamUnreachable),
        ("garbage", httpx2.RemoteProtocolError, UpstreamBodyInvalid),
        ("bomb", httpx2.RemoteProtocolError, UpstreamBodyInvalid),
        ("redirect-in-circles", httpx2.TooManyRedirects, UpstreamStatus),
    ],
)
async def test_errors_are_httpx2s_with_ours_as_their_cause(http, upstream, way, error, cause):
    with pytest.raises(error) as caught:
        await http.get(f"{upstream.url}/{way}", timeout=0.2)
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.request.url.path == f"/{way}"
    assert (await http.get(f"{upstream.url}/ok")).content == BODY


async def test_nobody_listens(http, upstream):
    with pytest.raises(httpx2.ConnectError) as caught:
        await http.get(upstream.refusing_url)
    assert isinstance(caught.value.__cause__, UpstreamUnreachable)


async def test_a_redirect_that_is_refused():
    async with FaultyUpstream() as upstream:

        async def send_on(exchange):
            await exchange.send(render(b"", status="307 Elsewhere", headers="Location: /ok\r\n"))
            return False

        upstream.script("/up", send_on)

        async def parts():
            yield b""

        async with (
            Client(Redirects(AiohttpTransport())) as client,
            httpx2.AsyncClient(transport=HttpxTransport(client)) as http,
        ):
            with pytest.raises(httpx2.RemoteProtocolError) as caught:
                await http.post(f"{upstream.url}/up", content=parts())
            assert isinstance(caught.value.__cause__, RedirectRefused)


async def test_its_timeouts_are_kept(http, upstream):
    started = time.monotonic()
    with pytest.raises(httpx2.ReadTimeout):
        await http.get(f"{upstream.url}/hang", timeout=httpx2.Timeout(0.1))
    with pytest.raises(httpx2.ReadTimeout, match=r"nothing more for 0\.1 s"):
        await http.get(f"{upstream.url}/hang-midway", timeout=httpx2.Timeout(10, read=0.1))
    assert time.monotonic() - started < 4
    # No limit to httpx2 is the client's limit here.
    async with Client(AiohttpTransport(), timeout=0.1) as brief:
        http = httpx2.AsyncClient(transport=HttpxTransport(brief), timeout=None)
        with pytest.raises(httpx2.ReadTimeout):
            await http.get(f"{upstream.url}/hang")


async def test_no_connection_in_time(client):
    async def say_nothing(reader, writer):
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, httpx2.AsyncClient(transport=HttpxTransport(client)) as http:
        with pytest.raises(httpx2.ConnectTimeout, match=r"no connection within 0\.05 s"):
            await http.get(url, timeout=httpx2.Timeout(10, connect=0.05))


async def test_an_answer_may_have_a_time_for_all_of_it(client, upstream):
    transport = HttpxTransport(client, total_timeout=0.3)
    async with httpx2.AsyncClient(transport=transport) as http:
        with pytest.raises(httpx2.ReadTimeout):
            await http.get(f"{upstream.url}/drip", timeout=60)


async def test_its_client_may_be_closed_and_ours_goes_on(client, upstream):
    async with httpx2.AsyncClient(transport=HttpxTransport(client)) as http:
        await http.get(f"{upstream.url}/ok")
    assert (await client.get(f"{upstream.url}/ok")).content == BODY
    assert upstream.accepted == 1


async def test_a_forgotten_answer_gives_its_slot_back(http, upstream):
    async def play(exchange):
        await exchange.send(CHUNKED + chunk(b"abc"))
        await exchange.wait_for_close()
        return False

    upstream.script("/x", play)
    for _ in range(3):
        response = await http.send(http.build_request("GET", f"{upstream.url}/x"), stream=True)
        assert response.status_code == 200
        del response
        gc.collect()
        async with asyncio.timeout(5):
            await upstream.wait_empty()


async def test_a_cancelled_call_frees_its_socket_at_once(http, upstream):
    took = []
    for number in range(20):
        for way in ("hang", "hang-midway"):
            call = asyncio.create_task(http.get(f"{upstream.url}/{way}"))
            await eventually(lambda way=way, number=number: upstream.calls[f"/{way}"] > number)
            call.cancel()
            started = time.perf_counter()
            with pytest.raises(asyncio.CancelledError):
                await call
            async with asyncio.timeout(5):
                await upstream.wait_empty()
            took.append(time.perf_counter() - started)
    assert sorted(took)[len(took) // 2] < 0.01


def test_without_httpx2_it_says_what_to_install():
    program = "import sys; sys.modules['httpx2'] = None; import freeloop.outbound.httpx_transport"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'freeloop[httpx2]'" in done.stderr


# The SDKs: the same five questions to both.

COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
}
MESSAGE = {
    "id": "1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
QUESTION = [{"role": "user", "content": "Hello?"}]


class OpenAI:
    path = "/v1/chat/completions"
    answer = COMPLETION
    errors = openai

    def __init__(self, http, url, **options):
        self.client = openai.AsyncOpenAI(
            api_key="k", base_url=f"{url}/v1", http_client=http, **{"max_retries": 0, **options}
        )

    async def ask(self):
        answer = await self.client.chat.completions.create(model="m", messages=QUESTION)
        return answer.choices[0].message.content

    async def stream(self):
        call = self.client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        async with await call as stream:
            async for piece in stream:
                yield piece.choices[0].delta.content

    def event(self, text):
        piece = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        }
        return b"data: %s\n\n" % orjson.dumps(piece)

    begin, end = b"", b"data: [DONE]\n\n"


class Anthropic:
    path = "/v1/messages"
    answer = MESSAGE
    errors = anthropic

    def __init__(self, http, url, **options):
        self.client = anthropic.AsyncAnthropic(
            api_key="k", base_url=url, http_client=http, **{"max_retries": 0, **options}
        )

    async def ask(self):
        answer = await self.client.messages.create(model="m", max_tokens=9, messages=QUESTION)
        return answer.content[0].text

    async def stream(self):
        async with self.client.messages.stream(model="m", max_tokens=9, messages=QUESTION) as stream:
            async for text in stream.text_stream:
                yield text

    @staticmethod
    def _event(kind, **fields):
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))

    def event(self, text):
        return self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    @property
    def begin(self):
        return self._event("message_start", message={**MESSAGE, "content": []}) + self._event(
            "content_block_start", index=0, content_block={"type": "text", "text": ""}
        )

    @property
    def end(self):
        return self._event("content_block_stop", index=0) + self._event("message_stop")


@pytest.fixture(params=[OpenAI, Anthropic], ids=["openai", "anthropic"])
async def sdk(request, client, upstream):
    transport = HttpxTransport(client, source="model", idempotent=True)
    async with httpx2.AsyncClient(transport=transport) as http:
        sdk = request.param(http, upstream.url)
        upstream.script(sdk.path, say(as_json(sdk.answer)))
        yield sdk


def as_json(value):
    return render(orjson.dumps(value), headers="Content-Type: application/json\r\n")


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_sdk_asks_and_is_seen(sdk, upstream):
    scope = Scope("sdk")
    scope.enter()
    try:
        assert await sdk.ask() == "Hello."
        assert orjson.loads(upstream.requests[-1].content)["messages"] == QUESTION
        assert scope.times()["upstream"] > 0
        assert scope.leases == ()
        upstream.script(sdk.path, "hang")
        call = scope.start_soon(sdk.ask)
        await eventually(lambda: len(scope.leases) == 2)
        lease, connection = scope.leases
        assert (lease.kind, lease.name) == ("upstream", "model")
        assert (connection.kind, connection.name) == ("socket", upstream.url.removeprefix("http://"))
        assert lease.place.endswith(".ask")
        assert connection.place == lease.place
        call.cancel()
        await asyncio.wait((call,))
        assert scope.leases == ()
    finally:
        scope.leave()
    assert upstream.accepted == 1


async def test_sdk_streams(sdk, upstream):
    more = asyncio.Event()

    async def play(exchange):
        await exchange.send(CHUNKED + chunk(sdk.begin + sdk.event("Hel")))
        await more.wait()
        await exchange.send(chunk(sdk.event("lo.")[:20]))
        await exchange.send(chunk(sdk.event("lo.")[20:] + sdk.end) + chunk(b""))
        return True

    upstream.script(sdk.path, play)
    for _ in range(2):
        more.clear()
        stream = sdk.stream()
        assert await anext(stream) == "Hel"
        more.set()
        assert [text async for text in stream] == ["lo."]
    assert upstream.accepted == 1


async def test_sdk_leaves_a_stream(sdk, upstream):
    async def play(exchange):
        await exchange.send(CHUNKED + chunk(sdk.begin + sdk.event("Hel")))
        await exchange.wait_for_close()
        return False

    upstream.script(sdk.path, play)
    for _ in range(3):  # there is one slot, which each gives back
        stream = sdk.stream()
        assert await anext(stream) == "Hel"
        await stream.aclose()
        async with asyncio.timeout(5):
            await upstream.wait_empty()


async def test_sdk_is_retried_when_the_upstream_says_so(sdk, upstream):
    busy = say(render(b"{}", status="429 Too Many Requests", headers="Retry-After: 0\r\n"))
    upstream.script(sdk.path, busy, say(as_json(sdk.answer)))
    assert await sdk.ask() == "Hello."
    assert upstream.calls[sdk.path] == 2
    # The last answer is the SDK's to judge.
    upstream.script(sdk.path, busy)
    with pytest.raises(sdk.errors.RateLimitError):
        await sdk.ask()
    assert upstream.calls[sdk.path] == 5


async def test_sdk_raises_its_own_errors(sdk, upstream, client):
    upstream.script(sdk.path, "close")
    with pytest.raises(sdk.errors.APIConnectionError) as caught:
        await sdk.ask()
    assert isinstance(caught.value.__cause__, httpx2.ReadError)
    upstream.script(sdk.path, "hang")
    sdk.client = sdk.client.with_options(timeout=0.1)
    with pytest.raises(sdk.errors.APITimeoutError) as caught:
        await sdk.ask()
    assert isinstance(caught.value.__cause__.__cause__, UpstreamTimeout)
    upstream.script(sdk.path, say(render(b"{}", status="500 Internal Server Error")))
    for _ in range(10):
        with pytest.raises((sdk.errors.InternalServerError, sdk.errors.APIConnectionError)):
            await sdk.ask()
    # The breaker has had enough.
    with pytest.raises(sdk.errors.APIConnectionError) as caught:
        await sdk.ask()
    assert isinstance(caught.value.__cause__.__cause__, UpstreamSuspended)


async def test_sdk_is_limited(sdk, upstream):
    at_once, most, full = 0, 0, asyncio.Event()

    async def play(exchange):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await full.wait()
        at_once -= 1
        await exchange.send(as_json(sdk.answer))
        return True

    upstream.script(sdk.path, play)
    calls = [asyncio.create_task(sdk.ask()) for _ in range(3)]
    # One is under way and one waits: the third is told at once.
    done, _ = await asyncio.wait(calls, return_when="FIRST_COMPLETED", timeout=5)
    (refused,) = done
    assert isinstance(refused.exception(), sdk.errors.APITimeoutError)
    assert isinstance(refused.exception().__cause__.__cause__, UpstreamBusy)
    full.set()
    assert [await call for call in calls if call is not refused] == ["Hello."] * 2
    assert (most, upstream.calls[sdk.path]) == (1, 2)


@pytest.mark.parametrize("kind", [OpenAI, Anthropic], ids=["openai", "anthropic"])
async def test_sdk_is_seen_in_the_metrics_of_its_source(kind, upstream):
    stacks = Stacks(AiohttpTransport(), {"model": Source()})
    metrics = Metrics()
    metrics.watch(list_outbound_readings(lambda: stacks))

    def read(name):
        (line,) = [line for line in metrics.render().decode().splitlines() if line.startswith(name)]
        return float(line.rpartition(" ")[2])

    async def play(exchange):
        await exchange.send(CHUNKED + chunk(sdk.begin + sdk.event("Hel")))
        await exchange.wait_for_close()
        return False

    async with (
        Client(Redirects(stacks), timeout=5) as client,
        httpx2.AsyncClient(transport=HttpxTransport(client, source="model", idempotent=True)) as http,
    ):
        sdk = kind(http, upstream.url)
        busy = say(render(b"{}", status="429 Too Many Requests", headers="Retry-After: 0\r\n"))
        upstream.script(sdk.path, busy, say(as_json(sdk.answer)), play)
        assert await sdk.ask() == "Hello."
        assert read('freeloop_upstream_attempts_total{source="model"}') == 2
        assert read('freeloop_upstream_retries_total{source="model"}') == 1
        stream = sdk.stream()
        assert await anext(stream) == "Hel"
        assert read('freeloop_upstream_running{source="model"}') == 1
        await stream.aclose()
        assert read('freeloop_upstream_running{source="model"}') == 0
