"""So many attempts a second, in order, and no token lost or created."""

import asyncio
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloop.errors import UpstreamBusy
from freeloop.outbound.rate import Rate, RateLimit
from virtual_time import LateLoop, Upstream, be_late, call, clock, simulate

rates = st.floats(0.01, 10_000)
bursts = st.integers(1, 50)
LATE = 0.01


def layer(upstream, per_second, *, burst=1):
    return RateLimit(upstream, lambda _: Rate(per_second, burst=burst), clock=clock)


@given(rates, bursts, st.lists(st.tuples(st.floats(0, 5) | st.just(0.0), st.integers(1, 20))))
def test_no_stretch_of_time_has_more_than_the_burst_and_the_rate(per_second, burst, steps):
    rate, now, taken = Rate(per_second, burst=burst), 1e6, []
    for gap, wanted in steps:
        now += gap / per_second
        taken += [now] * sum(rate.take(now) for _ in range(wanted))
    for index, start in enumerate(taken):
        for count, end in enumerate(taken[index:], 1):
            assert count <= burst + per_second * (end - start + 1e-6) + 1e-3


@given(rates, bursts, st.integers(0, 100), st.floats(0, 2))
def test_the_time_of_a_token_is_when_it_can_be_taken(per_second, burst, before, gap):
    rate, now = Rate(per_second, burst=burst), 1e6
    for _ in range(before):
        rate.take(now)
    now += gap / per_second
    seconds = rate.seconds_until(now)
    assert rate.take(now + seconds + 1e-9)
    if seconds > 1e-5:
        assert not rate.take(now)


@given(rates, bursts, st.integers(1, 200))
def test_tokens_given_back_are_as_if_never_taken(per_second, burst, wanted):
    rate, plain, now = Rate(per_second, burst=burst), Rate(per_second, burst=burst), 1e6
    plain.take(now)
    rate.take(now)
    taken = sum(rate.take(now) for _ in range(wanted))
    for _ in range(taken):
        rate.give_back()
    assert rate.seconds_until(now) == pytest.approx(plain.seconds_until(now), abs=1e-3)
    for _ in range(100):  # more than were taken: a full bucket stays full
        rate.give_back()
    assert sum(rate.take(now) for _ in range(200)) == burst


def test_the_rate_is_kept_and_used_in_full():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 10.0, burst=5)
        async with asyncio.TaskGroup() as group:
            for _ in range(105):
                group.create_task(limit.send(call(timeout=20.0)))
        assert upstream.times[4] == upstream.times[0]
        assert upstream.times[-1] - upstream.times[0] == pytest.approx(10.0, abs=0.01)
        assert all(b - a >= 0.1 - LATE - 1e-6 for a, b in pairwise(upstream.times[4:]))

    simulate(main)


def test_a_loop_that_is_a_little_late_does_not_lower_the_rate():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 10.0)
        started = clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(limit.send(call(timeout=20.0)))
        assert upstream.times[-1] - started == pytest.approx(9.9, abs=0.01)

    simulate(main, LateLoop)


def test_a_loop_that_stood_still_does_not_make_up_for_it_in_a_burst():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 10.0)
        asyncio.get_running_loop().call_later(0.15, be_late, 5.0)
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(limit.send(call(timeout=20.0)))
        assert all(b - a >= 0.1 - LATE - 1e-6 for a, b in pairwise(upstream.times))

    simulate(main)


async def test_the_rate_is_used_in_full_on_a_real_loop():
    class Counting:
        async def send(self, request):
            return None

    limit = RateLimit(Counting(), lambda _: Rate(2000.0))
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(1001):
            group.create_task(limit.send(call(timeout=20.0)))
    # 0.5 s; the machine may be late, and then the rate is not made up for beyond 10 ms.
    assert loop.time() - started >= 0.5 - LATE - 0.002


def test_who_would_come_too_late_is_told_at_once():
    async def main():
        limit = layer(Upstream(), 1.0)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(limit.send(call()))
            await asyncio.sleep(0)
            started = clock()
            with pytest.raises(UpstreamBusy, match=r"source 'prices'.*in 4 s \(3 wait before it") as busy:
                await limit.send(call(timeout=3.9))
            assert clock() == started
            assert busy.value.headers == {"Retry-After": "4"}
            assert (await limit.send(call(timeout=4.1))).status_code == 200
            assert clock() - started == pytest.approx(4.0)

    simulate(main)


def test_the_time_that_was_waited_is_gone():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 1.0)
        await limit.send(call())
        await limit.send(call(timeout=5.0))
        assert upstream.calls[1][1].timeout == pytest.approx(4.0)

    simulate(main)


def test_who_comes_later_does_not_overtake():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 10.0)
        async with asyncio.TaskGroup() as group:
            group.create_task(limit.send(call(url="0")))
            for number in range(1, 50):
                group.create_task(limit.send(call(url=str(number))))
                await asyncio.sleep(0.1)  # a token comes in the same moment
        assert [int(request.url) for _, request in upstream.calls] == list(range(50))

    simulate(main)


def test_who_comes_when_the_loop_is_late_does_not_overtake():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 1.0)
        await limit.send(call(url="0"))
        waiting = asyncio.create_task(limit.send(call(url="1")))
        await asyncio.sleep(0.5)
        be_late(2.0)
        await limit.send(call(url="2"))
        await waiting
        assert [request.url for _, request in upstream.calls] == ["0", "1", "2"]

    simulate(main)


def test_a_turn_that_is_given_back_goes_to_the_next():
    async def main():
        upstream = Upstream()
        limit = layer(upstream, 1.0)
        await limit.send(call())
        waiting = [asyncio.create_task(limit.send(call(url=str(number)))) for number in range(3)]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(clock() + 1.0, waiting[0].cancel)  # when its turn comes
        waiting[1].cancel()
        started = clock()
        await asyncio.wait(waiting)
        assert upstream.calls[-1][1].url == "2"
        assert clock() - started == pytest.approx(1.0, abs=0.01)

    simulate(main)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_tokens_are_neither_lost_nor_created_and_go_out_in_order(seed, burst):
    rng = random.Random(seed)  # noqa: S311 - traffic, no secret

    async def main():
        upstream = Upstream()
        limit = layer(upstream, 10.0, burst=burst)
        tasks = []
        for number in range(60):
            timeout = rng.choice([0.05, 0.5, 30.0])
            tasks.append(asyncio.create_task(limit.send(call(url=str(number), timeout=timeout))))
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.choice([0, 0.1, 0.2, 1.0]), tasks[-1].cancel)
            await asyncio.sleep(rng.choice([0, 0, 0.05, 0.1]))
        await asyncio.gather(*tasks, return_exceptions=True)
        # Those of the same moment may begin in any order.
        in_order = sorted(upstream.calls, key=lambda called: int(called[1].url))
        assert [when for when, _ in in_order] == upstream.times
        for index, start in enumerate(upstream.times):
            for count, end in enumerate(upstream.times[index:], 1):
                assert count <= burst + 10.0 * (end - start + LATE) + 1e-3
        await asyncio.sleep(burst / 10 + 1)
        before = len(upstream.calls)
        async with asyncio.TaskGroup() as group:
            for _ in range(burst + 1):
                group.create_task(limit.send(call()))
            await asyncio.sleep(0.01)
            assert len(upstream.calls) - before == burst

    simulate(main)


def test_an_idle_limit_has_no_timer():
    async def main():
        loop = asyncio.get_running_loop()
        limit = layer(Upstream(), 1.0, burst=2)
        await limit.send(call())
        await limit.send(call())
        task = asyncio.create_task(limit.send(call()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]

    simulate(main)


def test_a_source_without_a_rate_is_not_limited():
    async def main():
        upstream = Upstream()
        limit = RateLimit(upstream, lambda name: Rate(1.0) if name == "prices" else None, clock=clock)
        for _ in range(100):
            await limit.send(call(source="free"))
        assert upstream.times[0] == upstream.times[-1]

    simulate(main)


@pytest.mark.parametrize(("per_second", "burst"), [(0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (1, 0)])
def test_wrong_rates_are_refused(per_second, burst):
    with pytest.raises(ValueError, match="per_second is over 0"):
        Rate(per_second, burst=burst)
