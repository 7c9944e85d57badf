"""Whatever an upstream does wrong while its answer is read: the right error, in time, nothing left behind."""

import asyncio
import time

import pytest
from test_faulty_upstream import ANSWERED, LATE, MAX_BODY, OUTCOMES, SEEDS, TIMEOUT

from freeloop.errors import RedirectRefused, UpstreamTimeout
from freeloop.outbound.aiohttp_transport import AiohttpTransport
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.outbound.client import Client
from freeloop.outbound.redirects import Redirects
from freeloop.scope import Scope
from freeloop.testing import FaultyUpstream
from freeloop.testing.answers import BODY


async def read(client, url):
    async with client.stream("GET", url) as response:
        return response.status_code, b"".join([part async for part in response.aiter_bytes()])


def make_client():
    """With one slot, which a call that kept it would keep from the next one."""
    layer = Bulkhead(AiohttpTransport(), lambda _: Compartment(most=1, queue=0))
    return Client(Redirects(layer), timeout=5, max_body=MAX_BODY)


@pytest.mark.parametrize("way", [way for way in OUTCOMES if OUTCOMES[way][0] is not RedirectRefused])
async def test_what_goes_wrong_has_its_error_and_its_bound(way):
    error, _ = OUTCOMES[way]
    for seed in SEEDS if error is not UpstreamTimeout else SEEDS[:4]:
        async with FaultyUpstream(seed=seed) as upstream, make_client() as client:
            # What drips has each of its parts in time; the deadline of the scope is for them together.
            scope = Scope("stream", seconds=TIMEOUT if error is UpstreamTimeout else 5)
            scope.enter()
            started = time.perf_counter()
            with pytest.raises(error) as caught:
                await read(client, f"{upstream.url}/{way}")
            assert time.perf_counter() - started < (TIMEOUT if error is UpstreamTimeout else 1) + LATE
            assert upstream.url.rpartition(":")[2] in caught.value.detail
            assert scope.leases == ()
            scope.set_deadline(5)
            assert await read(client, f"{upstream.url}/ok") == (200, BODY)
            scope.leave()
            await client.close()
            async with asyncio.timeout(5):
                await upstream.wait_empty()


@pytest.mark.parametrize("way", ANSWERED)
async def test_an_answer_is_complete_and_the_next_one_its_own(way):
    for seed in SEEDS:
        async with FaultyUpstream(seed=seed) as upstream, make_client() as client:
            status, content = await read(client, f"{upstream.url}/{way}")
            assert (status, b"nobody" in content) == (ANSWERED[way], False)
            assert await read(client, f"{upstream.url}/ok") == (200, BODY)
            assert upstream.accepted == (2 if way.startswith("extra") else 1)
