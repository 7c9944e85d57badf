"""The page Upstreams counts what a real upstream was asked, and what it was spared."""

import asyncio
import threading
import time

import pytest

from conftest import open_shop
from freeloop.testing import FaultyUpstream
from freeloop.testing.answers import render, say

BOUND = 30  # seconds that anything may take here
SLOW = 0.3  # seconds that a slow answer takes
KEPT = say(render(headers="Cache-Control: max-age=3600\r\n"))


class Upstream(threading.Thread):
    """An upstream with a loop of its own; it answers ``/held`` once it is let go."""

    def __enter__(self):
        self._ready = threading.Event()
        self.start()
        assert self._ready.wait(BOUND)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(BOUND)

    def run(self):
        asyncio.run(self._serve())

    def let_go(self):
        self._loop.call_soon_threadsafe(self._free.set)

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._over, self._free = asyncio.Event(), asyncio.Event()
        async with FaultyUpstream() as upstream:
            self.url, self.calls = upstream.url, upstream.calls
            upstream.script("/held", self._hold)
            upstream.script("/kept", KEPT)
            upstream.script("/flaky", say(render(b"", status="503 Service Unavailable")), "ok")
            for number in range(40):
                upstream.script(f"/slow-{number}", _dawdle)
            self._ready.set()
            await self._over.wait()

    async def _hold(self, exchange):
        await self._free.wait()
        return await say(render())(exchange)


async def _dawdle(exchange):
    await asyncio.sleep(SLOW)
    return await say(render())(exchange)


@pytest.fixture(scope="module")
def upstream():
    with Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def shop(upstream):
    with open_shop(SHOP_PRICES=upstream.url) as running:
        yield running


def test_what_an_upstream_was_asked_and_spared(visit, shop, upstream):
    page = visit()
    page.open("upstreams")
    shop.ask(*["/prices/held"] * 5)
    see(page, {"Running": "1", "Shared": "4 (80 %)"})
    upstream.let_go()
    shop.wait()
    shop.get("/prices/flaky")
    shop.ask(*(f"/prices/slow-{number}" for number in range(40)))
    shop.wait()
    for _ in range(48):
        shop.get("/prices/kept")
    told = see(
        page,
        {
            "Breaker": "closed",
            "Sent": "44",  # held and kept once, flaky twice, each slow one
            "Running": "0",
            "Refused": "0",
            "Retries": "1",
            "Shared": "4 (9 %)",  # of 47 calls that needed an answer
            "From memory": "50 %",  # 47 of the kept ones; as many answers were none: 5, 1, 40 and the first
        },
    )
    assert upstream.calls.total() == 44
    number, unit = told["Usual latency"].split()
    assert (float(number) > 2 / 3 * SLOW, unit) == (True, "s")


def see(page, wanted):
    """Wait until the row of the source shows this; return the row, by the columns' titles."""
    until = time.monotonic() + BOUND
    while not wanted.items() <= (row := page.page.evaluate(ROW) or {}).items():
        assert time.monotonic() < until, f"{row}"
        page.page.wait_for_timeout(100)
    return row


ROW = """(() => {
    const titles = [...document.querySelectorAll("#sources thead th")].map((each) => each.textContent.trim());
    const rows = [...document.querySelectorAll("#sources tbody tr")];
    const row = rows.find((each) => each.cells[0].textContent.startsWith("prices"));
    return row && Object.fromEntries(titles.map((title, at) => [title, row.cells[at].textContent.trim()]));
})()"""
