"""Many calls: how many at once, in which order, and that none is left behind."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloop.errors import OutboundError, UpstreamStatus, UpstreamUnreachable
from freeloop.outbound import AiohttpTransport, Client
from freeloop.outbound.many import as_completed, fetch_all
from freeloop.testing import FaultyUpstream, eventually
from virtual_time import clock, simulate


class Getter:
    """Answers a number after so many seconds, with itself; a negative one fails."""

    def __init__(self):
        self.running = self.most = 0
        self.began = []
        self.cancelled = []
        self.options = []

    async def get(self, url, **options):
        self.options.append(options)
        self.began.append(url)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(abs(float(url)))
        except asyncio.CancelledError:
            self.cancelled.append(url)
            await asyncio.sleep(0)  # a clean-up that takes a moment
            raise
        finally:
            self.running -= 1
        if url.startswith("-"):
            raise UpstreamUnreachable(url)
        return url


def test_answers_come_in_the_order_of_the_urls():
    async def main():
        getter = Getter()
        assert await fetch_all(getter, ["3", "1", "2"], headers={"A": "1"}) == ["3", "1", "2"]
        assert getter.options == [{"headers": {"A": "1"}}] * 3
        assert clock() == 1003.0

    simulate(main)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["0", "1", "2.5", "-1", "-0.5"])), st.integers(1, 12))
def test_as_many_at_once_as_may_and_every_outcome_once_and_in_time(urls, limit):
    async def main():
        getter = Getter()
        ends = await fetch_all(getter, iter(urls), limit=limit, policy="collect")
        assert [end.detail if isinstance(end, OutboundError) else end for end in ends] == urls
        assert getter.most == min(limit, len(urls))
        assert getter.began == urls

        arrived, last = [], 0.0
        started = clock()
        async with as_completed(getter, urls, limit=len(urls) or 1) as outcomes:
            async for outcome in outcomes:
                arrived.append(outcome.place)
                assert outcome.url == urls[outcome.place]
                assert clock() - started == abs(float(outcome.url)) >= last
                last = clock() - started
        assert sorted(arrived) == list(range(len(urls)))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


def test_the_first_error_ends_the_others_before_it_is_raised():
    async def main():
        getter = Getter()
        started = clock()
        with pytest.raises(UpstreamUnreachable, match="-1") as failed:
            await fetch_all(getter, ["5", "-1", "7", "-2"], limit=3)
        assert (clock() - started, getter.running, set(getter.cancelled)) == (1.0, 0, {"5", "7", "-2"})
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert failed.value.__context__ is None

    simulate(main)


def test_who_stops_reading_leaves_no_call_behind():
    async def main():
        getter = Getter()
        async with as_completed(getter, ["1", "2", "3"]) as outcomes:
            async for outcome in outcomes:
                assert outcome.result() == "1"
                break
        assert (getter.running, getter.cancelled) == (0, ["2", "3"])
        with pytest.raises(LookupError):
            async with as_completed(getter, ["1", "2", "3"]):
                raise LookupError
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


@pytest.mark.parametrize("policy", ["collect", "first-error"])
def test_a_cancelled_reader_leaves_no_call_behind(policy):
    async def main():
        getter = Getter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await fetch_all(getter, ["1", "2", "3"], policy=policy)
        assert (getter.running, getter.cancelled) == (0, ["2", "3"])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


def test_who_reads_slowly_is_not_overrun():
    async def main():
        getter = Getter()
        async with as_completed(getter, ("0" for _ in range(1000)), limit=5) as outcomes:
            read = 0
            async for _ in outcomes:
                read += 1
                await asyncio.sleep(1)
                # Under way or waiting to be read: twice the limit at most.
                assert len(getter.began) - read <= 10
        assert read == 1000

    simulate(main)


def test_a_call_that_is_cancelled_from_inside_is_an_outcome():
    class Cancelling(Getter):
        async def get(self, url):
            if url == "2":
                raise asyncio.CancelledError
            return await super().get(url)

    async def main():
        ends = await fetch_all(Cancelling(), ["1", "2", "3"], policy="collect")
        assert (ends[0], type(ends[1]), ends[2]) == ("1", UpstreamUnreachable, "3")
        with pytest.raises(UpstreamUnreachable, match="cancelled"):
            await fetch_all(Cancelling(), ["1", "2", "3"])

    simulate(main)


def test_without_urls_there_is_nothing_to_wait_for():
    async def main():
        assert await fetch_all(Getter(), []) == []
        assert await fetch_all(Getter(), iter([]), policy="collect") == []

    simulate(main)


async def test_the_limit_is_one_or_more():
    with pytest.raises(ValueError, match="1 call at once or more, not 0"):
        await fetch_all(Getter(), ["1"], limit=0)


async def test_over_the_network_the_first_error_frees_every_socket():
    async with FaultyUpstream() as upstream, Client(AiohttpTransport()) as client:
        answers = await fetch_all(client, [f"{upstream.url}/ok?{n}" for n in range(20)], limit=4, timeout=5.0)
        assert [answer.status_code for answer in answers] == [200] * 20
        assert upstream.accepted <= 4
        upstream.drop()
        await upstream.wait_empty()

        async def fail_once_all_hang(exchange):
            await eventually(lambda: upstream.calls["/hang"] == 3)
            exchange.writer.close()
            return False

        upstream.script("/fail", fail_once_all_hang)
        with pytest.raises(UpstreamUnreachable):
            await fetch_all(client, [f"{upstream.url}/{way}" for way in ("hang", "hang", "fail", "hang")])
        async with asyncio.timeout(5):
            await upstream.wait_empty()


async def test_an_outcome_raises_its_error_when_it_is_asked_for():
    async with FaultyUpstream() as upstream, Client(AiohttpTransport()) as client:
        urls = [f"{upstream.url}/ok", f"{upstream.url}/busy"]
        async with as_completed(client, urls) as outcomes:
            found = {outcome.place: outcome async for outcome in outcomes}
        assert found[0].result().status_code == 200
        with pytest.raises(UpstreamStatus):
            found[1].result().raise_for_status()
