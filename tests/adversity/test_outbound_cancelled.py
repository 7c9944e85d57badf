"""Callers who leave at any moment, and a thousand of them before a dead source: nothing is left behind."""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from freeloop.errors import OutboundError
from freeloop.outbound import AiohttpTransport, Client, Redirects, Source, Stacks
from freeloop.scope import Scope
from freeloop.testing import FaultyUpstream, eventually
from freeloop.testing.answers import BODY

OPTIONS = {
    "by default": {},
    "everything": {
        "hedge": True,
        "coalesce": True,
        "cache": True,
        "attempt_timeout": 5.0,
        "rate": 1e5,
        "burst": 100_000,
        "concurrency": 2,
    },
    "short of places": {"concurrency": 1, "queue": 3, "rate": 500.0},
}
WAYS = ["ok", "hang", "close", "reset", "truncate", "drip", "extra", "busy", "redirect-on/3", "bomb"]
TURNS = range(0, 40, 2)


@asynccontextmanager
async def calling(upstream, **options):
    sources = {"faulty": Source(upstream.url, **{"timeout": 5.0, **options})}
    stacks = Stacks(AiohttpTransport(), sources)
    async with Client(Redirects(stacks), max_body=200_000, sources=sources) as client:
        yield client, stacks.of("faulty")


async def get(client, way):
    await client.get(f"/{way}", source="faulty")


async def stream(client, way):
    async with client.stream("GET", f"/{way}", source="faulty") as response:
        async for _ in response.aiter_bytes():
            pass


async def upload(client, way):
    async def parts():
        for _ in range(3):
            await asyncio.sleep(0)
            yield b"x" * 70_000

    await client.put(f"/{way}", source="faulty", content=parts(), headers={"Content-Length": "210000"})


def is_idle(stack):
    waiting = len(stack.coalesce or ()) + (stack.rate.waiting if stack.rate else 0)
    return not (waiting or stack.bulkhead.running or stack.bulkhead.waiting)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("call", [get, stream, upload])
async def test_whenever_its_caller_leaves_a_call_gives_everything_back(call, options):
    async with FaultyUpstream() as upstream, calling(upstream, **OPTIONS[options]) as (client, stack):

        async def one(scope, way):
            scope.enter()
            await call(client, way)

        for way in WAYS:
            for turns in TURNS:
                scopes = [Scope("left", seconds=5) for _ in range(1 + turns % 3)]
                tasks = [asyncio.create_task(one(scope, way)) for scope in scopes]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    assert ended is None or isinstance(ended, asyncio.CancelledError | OutboundError)
                assert [scope.leases for scope in scopes] == [()] * len(scopes)
                await eventually(lambda: is_idle(stack))
                for _, breaker in stack.breaker.breakers:
                    assert breaker.state != "half-open"
                    breaker._close()  # it may have heard of real failures; each round begins anew
            # It answers still, with what was asked for.
            response = await client.get("/ok", source="faulty", headers={"Cache-Control": "no-store"})
            assert response.content == BODY


@pytest.mark.parametrize("way", ["refused", "close", "hang", "drip"])
async def test_a_thousand_callers_of_a_dead_source(way):
    async with FaultyUpstream() as upstream, calling(upstream, timeout=0.5) as (client, stack):
        url = upstream.refusing_url if way == "refused" else f"{upstream.url}/{way}"

        async def call_all():
            started = time.monotonic()
            calls = [client.get(url, source="faulty") for _ in range(1000)]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            return Counter(type(each).__name__ for each in ended), time.monotonic() - started

        ended, seconds = await call_all()
        assert set(ended) <= {"UpstreamUnreachable", "UpstreamTimeout", "UpstreamBusy", "UpstreamSuspended"}
        assert seconds < 3
        assert stack.retry.retries <= 100  # a tenth of the calls
        attempts = stack.attempt.attempts
        ended, _ = await call_all()
        assert ended == {"UpstreamSuspended": 1000}
        assert (stack.attempt.attempts, is_idle(stack)) == (attempts, True)
