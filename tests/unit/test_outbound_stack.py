"""All layers together, in their order, in front of a real upstream that fails on purpose."""

import asyncio
import ssl
import time
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
import trustme

from freeloop.errors import (
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamBusy,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
    UrlRefused,
)
from freeloop.outbound import (
    AiohttpTransport,
    Client,
    Redirects,
    Response,
    Source,
    Stacks,
    UrlGuard,
    UrlPolicy,
)
from freeloop.outbound.layers import compose
from freeloop.scope import Scope
from freeloop.testing import FaultyUpstream, eventually
from freeloop.testing.answers import BODY, render, say
from serving import soon

LATE = 1.0  # s by which a call may come back after its time, on a machine that is busy with other tests
EVERYTHING = {
    "attempt_timeout": 5.0,
    "hedge": True,
    "rate": 1e6,
    "burst": 1_000_000,
    "coalesce": True,
    "cache": True,
}


@asynccontextmanager
async def calling(upstream, **options):
    """A client whose source has these options; gives it, and the layers of the source."""
    sources = {"faulty": Source(upstream.url, **options)}
    stacks = Stacks(AiohttpTransport(limit=1000, limit_per_host=100), sources)
    async with Client(Redirects(stacks), max_body=200_000, sources=sources) as client:
        yield client, stacks.of("faulty")


def gather(calls):
    return asyncio.gather(*calls, return_exceptions=True)


def names_of(layer):
    while hasattr(layer, "_transport"):
        yield type(layer).__name__
        layer = layer._transport


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"retries": 0, "breaker": None, "concurrency": None}, ""),
        ({}, "Retry CircuitBreaker Bulkhead"),
        ({"rate": 10.0}, "Retry CircuitBreaker RateLimit Bulkhead"),
        ({"retries": 0, "hedge": True}, "Retry Hedge CircuitBreaker Bulkhead"),
        (EVERYTHING, "Cache Coalesce Retry Hedge CircuitBreaker RateLimit Bulkhead"),
    ],
)
def test_a_source_has_the_layers_that_it_uses_in_their_order(options, layers):
    stack = compose(object(), Source(**options))
    assert list(names_of(stack.first)) == [*layers.split(), "AttemptTimeout"]


async def test_a_breaker_that_is_open_answers_from_what_is_stored(upstream):
    upstream.script("/x", say(render(headers="Cache-Control: max-age=0, stale-if-error=60\r\n")), "close")
    async with calling(upstream, cache=True, retries=0) as (client, stack):
        for _ in range(40):
            assert (await client.get("/x", source="faulty")).content == BODY
        assert (stack.attempt.attempts, stack.breaker.refused) == (20, 20)
        assert (stack.breaker.suspended, stack.cache.stale) == (1, 39)
        with pytest.raises(UpstreamSuspended) as caught:
            await client.get("/other", source="faulty")
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})


async def test_every_attempt_pays_for_the_rate(upstream):
    came = []

    async def fail(exchange):
        came.append(time.monotonic())
        return False

    upstream.script("/x", fail)
    async with calling(upstream, rate=2.5, retries=2) as (client, stack):
        with pytest.raises(UpstreamUnreachable):
            await client.get("/x", source="faulty")
    # The back-off alone would be below 0.1 and 0.2 s.
    assert [later - earlier >= 0.35 for earlier, later in pairwise(came)] == [True, True]
    assert (stack.attempt.attempts, stack.retry.retries) == (3, 2)


async def test_who_waits_for_the_rate_holds_no_place(upstream):
    async with calling(upstream, rate=2.0, concurrency=1, queue=0) as (client, stack):
        await client.get("/ok", source="faulty")
        second = asyncio.create_task(client.get("/ok", source="faulty"))
        await eventually(lambda: stack.rate.waiting == 1)
        assert stack.bulkhead.running == 0
        assert (await second).status_code == 200


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_hundred_identical_calls_are_one(upstream, leaves):
    go_on = asyncio.Event()

    async def wait(exchange):
        await go_on.wait()
        return await say(render())(exchange)

    upstream.script("/x", wait)
    async with calling(upstream, **EVERYTHING) as (client, stack):
        calls = [asyncio.create_task(client.get("/x", source="faulty")) for _ in range(100)]
        await eventually(lambda: upstream.calls["/x"] and stack.coalesce.joined == 99)
        if leaves:
            calls[0].cancel()
        await asyncio.sleep(0)
        go_on.set()
        first, *others = await soon(gather(calls))
    assert [other.content for other in others] == [BODY] * 99
    assert isinstance(first, asyncio.CancelledError if leaves else Response)
    assert (upstream.calls.total(), stack.attempt.attempts) == (1, 1)


async def test_the_last_one_of_them_takes_the_call_along(upstream):
    async with calling(upstream, **EVERYTHING) as (client, stack):
        calls = [asyncio.create_task(client.get("/hang", source="faulty")) for _ in range(5)]
        await eventually(lambda: upstream.calls["/hang"] and stack.coalesce.joined == 4)
        for call in calls:
            call.cancel()
        await gather(calls)
        await soon(upstream.wait_empty())
        assert (len(stack.coalesce), stack.bulkhead.running) == (0, 0)


class TestTheTotalDeadline:
    """However its time is spent: the call comes back within it, and says what it was spent on."""

    async def fails(self, error, call, *, seconds):
        started = time.monotonic()
        with pytest.raises(error) as caught:
            await soon(call, 30)
        assert time.monotonic() - started < seconds + LATE
        return caught.value.detail

    async def test_covers_the_queue(self, upstream):
        async with calling(upstream, concurrency=1) as (client, stack):
            first = asyncio.create_task(client.get("/hang", source="faulty"))
            await eventually(lambda: stack.bulkhead.running == 1)
            detail = await self.fails(
                UpstreamBusy, client.get("/ok", source="faulty", timeout=0.1), seconds=0.1
            )
            assert "no slot came free within 0.1 s" in detail
            first.cancel()
            await gather([first])

    async def test_covers_the_back_off(self, upstream):
        async with calling(upstream) as (client, _):
            response = await soon(client.get("/busy", source="faulty", timeout=2.0), 1.5)
            assert (response.status_code, upstream.calls.total()) == (429, 1)  # Retry-After: 7

    async def test_covers_all_attempts(self, upstream):
        upstream.script("/x", "close", "hang")
        async with calling(upstream) as (client, _):
            detail = await self.fails(
                UpstreamTimeout, client.get("/x", source="faulty", timeout=0.3), seconds=0.3
            )
        assert "did not answer completely" in detail
        assert upstream.calls["/x"] == 2

    async def test_covers_redirects(self, upstream):
        async def redirect_slowly(exchange):
            number = int(exchange.target.partition("?")[2] or 0)
            await asyncio.sleep(0.1)
            await exchange.send(render(b"", status="302 Found", headers=f"Location: /x?{number + 1}\r\n"))
            return True

        upstream.script("/x", redirect_slowly)
        async with calling(upstream) as (client, _):
            await self.fails(UpstreamTimeout, client.get("/x", source="faulty", timeout=0.25), seconds=0.25)
        assert upstream.calls["/x"] <= 3

    async def test_is_the_scopes_where_that_ends_first(self, upstream):
        async def run():
            Scope("r", seconds=0.15).enter()
            await client.get("/hang", source="faulty", timeout=30)

        async with calling(upstream, **EVERYTHING) as (client, _):
            detail = await self.fails(UpstreamTimeout, asyncio.create_task(run()), seconds=0.15)
        # The transport's own timer, which can say how far the call had come.
        assert "did not answer completely within 0.1" in detail
        assert "time was up before it answered" in detail

    async def test_is_the_sources_where_the_call_says_nothing(self, upstream):
        async with calling(upstream, timeout=0.1) as (client, _):
            await self.fails(UpstreamTimeout, client.get("/hang", source="faulty"), seconds=0.1)

    async def test_leaves_time_for_another_attempt(self, upstream):
        upstream.script("/x", "hang", "ok")
        async with calling(upstream, attempt_timeout=0.1) as (client, _):
            assert (await client.get("/x", source="faulty", timeout=5)).content == BODY


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/endless", UpstreamBodyInvalid),
        ("/garbage", UpstreamBodyInvalid),
        ("/not-gzip", UpstreamBodyInvalid),
    ],
)
async def test_what_would_fail_again_is_not_repeated(upstream, path, error):
    async with calling(upstream) as (client, stack):
        with pytest.raises(error):
            await client.get(path, source="faulty")
        assert (upstream.calls.total(), stack.attempt.attempts) == (1, 1)


async def test_what_was_refused_is_not_repeated(upstream):
    stacks = Stacks(AiohttpTransport())
    guard = UrlGuard(stacks, policy=UrlPolicy(ports=None), exempt={"faulty": upstream.url})
    async with Client(Redirects(guard)) as client, FaultyUpstream() as inner:
        with pytest.raises(UrlRefused):
            await client.get(inner.url, source="faulty")
        upstream.script("/away", say(render(b"", status="302 Found", headers=f"Location: {inner.url}/\r\n")))
        with pytest.raises(RedirectRefused):
            await client.get(upstream.url + "/away", source="faulty")
        assert (upstream.calls.total(), inner.accepted) == (1, 0)


async def test_a_certificate_that_is_not_trusted_is_not_asked_for_again():
    def build():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        return context

    async with (
        FaultyUpstream(tls=await asyncio.to_thread(build)) as upstream,  # it reads files
        calling(upstream) as (client, stack),
    ):
        with pytest.raises(UpstreamUnreachable, match="could not be reached") as caught:
            await client.get("/ok", source="faulty")
        assert (caught.value.lasting, stack.attempt.attempts) == (True, 1)


async def test_a_client_that_is_closed_is_not_asked_again(upstream):
    async with calling(upstream) as (client, stack):
        await client.close()
        with pytest.raises(UpstreamUnreachable, match="the outbound client is closed"):
            await client.get("/ok", source="faulty")
        assert stack.attempt.attempts == 1


async def test_a_call_under_way_when_the_client_closes_is_not_repeated(upstream):
    async with calling(upstream) as (client, stack):
        call = asyncio.create_task(client.get("/hang", source="faulty"))
        await eventually(lambda: upstream.calls["/hang"])
        await client.close()
        with pytest.raises(UpstreamUnreachable, match="the outbound client is closed"):
            await soon(call)
        assert stack.attempt.attempts == 1


async def test_a_post_is_repeated_only_where_its_caller_says_so(upstream):
    async with calling(upstream) as (client, _):
        upstream.script("/x", "close", "ok")
        with pytest.raises(UpstreamUnreachable):
            await client.post("/x", source="faulty", json={"a": 1})
        upstream.script("/x", "close", "ok")
        response = await client.post("/x", source="faulty", json={"a": 1}, idempotent=True)
    assert (response.content, upstream.calls["/x"]) == (BODY, 3)
    assert [seen.content for seen in upstream.requests] == [b'{"a":1}'] * 3


async def test_names_of_which_nothing_is_said_are_bounded(upstream):
    stacks = Stacks(AiohttpTransport(), {"said": Source()})
    async with Client(Redirects(stacks)) as client:
        for number in range(150):
            assert (await client.get(upstream.url, source=f"name {number}")).status_code == 200
        await client.get(upstream.url)
    counted = {name: stack.attempt.attempts for name, stack in stacks}
    assert len(counted) == 102
    assert (counted["(none)"], counted["said"], counted["name 99"]) == (51, 0, 1)


async def test_sources_do_not_share_their_layers(upstream):
    sources = {name: Source(upstream.url, retries=0) for name in ("good", "bad")}
    stacks = Stacks(AiohttpTransport(), sources)
    async with Client(Redirects(stacks), sources=sources) as client:
        await gather(client.get("/close", source="bad") for _ in range(30))
        with pytest.raises(UpstreamSuspended):
            await client.get("/ok", source="bad")
        assert (await client.get("/ok", source="good")).status_code == 200


async def read_held_up():
    """The seconds in which this process could have run, but another one had the core."""
    schedstat = await asyncio.to_thread(Path("/proc/self/schedstat").read_text)
    return int(schedstat.split()[1]) / 1e9


@pytest.mark.long
async def test_a_thousand_calls_at_once_are_as_fast_as_bare_aiohttp(upstream):
    async def answer_late(exchange):
        await asyncio.sleep(0.05)
        return await say(render())(exchange)

    upstream.script("/x", answer_late)
    url = f"{upstream.url}/x"

    async def measure(get):
        held_up, started = await read_held_up(), time.perf_counter()
        await asyncio.gather(*[get() for _ in range(1000)])
        took = time.perf_counter() - started
        return took - (await read_held_up() - held_up)

    async def get_bare():
        async with session.get(url) as answer:
            return await answer.read()

    async with aiohttp.ClientSession() as session, calling(upstream) as (client, _):
        # In turn, and the best of each: what another program does meanwhile is no cost of a call.
        rounds = [
            (await measure(get_bare), await measure(lambda: client.get(url, source="faulty")))
            for _ in range(6)
        ]
    bare, ours = map(min, zip(*rounds, strict=True))
    assert ours < 1.25 * bare, rounds
