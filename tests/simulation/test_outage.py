"""All layers between the retries and the transport together, with an upstream that fails in several ways."""

import asyncio
import random
from itertools import pairwise

import pytest

from freeloop.errors import OutboundError, UpstreamBusy, UpstreamNotCalled, UpstreamTimeout
from freeloop.outbound.attempt import AttemptTimeout
from freeloop.outbound.breaker import Breaker, CircuitBreaker
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.bulkhead import Bulkhead, Compartment
from freeloop.outbound.hedge import Hedge, HedgeDelay
from freeloop.outbound.rate import Rate, RateLimit
from freeloop.outbound.retry import Retry
from freeloop.outbound.sources import Sources
from virtual_time import Upstream, arrive, broken, call, clock, refused, simulate


def stack(upstream, *, rate=None, most=50, attempt=3.0, breaker=Breaker):
    budgets = Sources(lambda _: RetryBudget())
    layer = AttemptTimeout(upstream, attempt)
    layer = Bulkhead(layer, lambda _: Compartment(most=most), clock=clock)
    layer = RateLimit(layer, lambda _: None if rate is None else Rate(rate, burst=10), clock=clock)
    layer = CircuitBreaker(layer, lambda _: breaker(), clock=clock)
    layer = Hedge(layer, budgets, lambda _: HedgeDelay(), clock=clock)
    return Retry(layer, budgets, clock=clock)


def never_opens():
    return Breaker(failures=2.0)


@pytest.mark.parametrize("failure", [503, refused(), broken(), "hang"])
@pytest.mark.parametrize("breaker", [Breaker, never_opens])
def test_an_outage_of_minutes_is_not_made_worse(failure, breaker):
    async def main():
        upstream = Upstream(seconds=0.05)
        layers = stack(upstream, breaker=breaker)
        assert set(await arrive(layers, 20, 60)) == {200}
        if failure == "hang":
            upstream.seconds = 1e9
        else:
            upstream.answer = failure
        await arrive(layers, 20, 300)
        offered = 20 * 360
        assert len(upstream.calls) <= 1.1 * offered
        if breaker is Breaker:
            assert len(upstream.calls) <= 20 * 60 * 1.1 + 20 * 20  # some seconds, and the probes
        upstream.answer, upstream.seconds, revived = 200, 0.05, clock()
        ends = await arrive(layers, 20, 120)
        first = next(when for when in upstream.times if when >= revived)
        assert set(ends[int((first - revived + 3.2) * 20) :]) == {200}
        assert (upstream.running, len(asyncio.all_tasks())) == (0, 1)

    simulate(main)


def test_hours_of_outages_are_each_survived():
    async def main():
        rng = random.Random(1)  # noqa: S311 - latencies, no secret
        upstream = Upstream()
        layers = stack(upstream)
        for failure in [503, refused(), broken(), "hang"] * 3:  # 20 minutes each
            upstream.answer, upstream.seconds = 200, lambda: 1.5 if rng.random() < 0.02 else 0.1
            begun = len(upstream.calls)
            ends = await arrive(layers, 4, 900)
            assert set(ends[4 * 65 :]) == {200}  # the longest pause, and the probe
            assert 4 * 835 < len(upstream.calls) - begun < 1.1 * 4 * 900  # hedges, within the budget
            upstream.answer = 200 if failure == "hang" else failure
            upstream.seconds = 1e9 if failure == "hang" else 0.1
            begun = len(upstream.calls)
            await arrive(layers, 4, 300)
            assert len(upstream.calls) - begun <= 4 * 30  # some seconds, and the probes
        assert (upstream.running, len(asyncio.all_tasks())) == (0, 1)

    simulate(main)


def test_single_failures_are_hidden_from_the_callers():
    async def main():
        rng = random.Random(1)  # noqa: S311 - traffic, no secret
        upstream = Upstream()
        upstream.script.extend((0.05, broken() if rng.random() < 0.01 else 200) for _ in range(12_000))
        ends = await arrive(stack(upstream), 20, 500)
        assert ends.count(200) >= 0.9995 * len(ends)
        assert len(upstream.calls) <= 1.1 * len(ends)

    simulate(main)


def test_an_upstream_that_slows_down_is_neither_given_up_nor_asked_much_more():
    async def main():
        upstream = Upstream(seconds=0.05)
        layers = stack(upstream)
        for seconds in (0.05, 0.2, 0.8, 2.0, 0.05):
            upstream.seconds = seconds
            assert set(await arrive(layers, 20, 120)) == {200}
        assert len(upstream.calls) <= 1.1 * 20 * 600

    simulate(main)


def test_a_herd_is_let_through_at_the_rate_and_the_rest_told_at_once():
    async def main():
        upstream = Upstream(seconds=0.2)
        layers = stack(upstream, rate=50.0, most=20)
        started = clock()
        ends = []

        async def one():
            try:
                ends.append((clock(), (await layers.send(call(timeout=5.0))).status_code))
            except OutboundError as error:
                ends.append((clock(), error))

        async with asyncio.TaskGroup() as group:
            for _ in range(2000):
                group.create_task(one())
        served = [end for _, end in ends if end == 200]
        told = [when - started for when, end in ends if isinstance(end, UpstreamBusy)]
        late = [
            end for _, end in ends if isinstance(end, UpstreamTimeout)
        ]  # its turn came 0.1 s before its end
        assert len(served) + len(told) + len(late) == 2000
        assert len(late) <= 10
        assert 245 <= len(served) <= 260  # 50 a second for 5 s, and the burst
        assert max(told) == 0
        assert upstream.most <= 20
        assert all(b - a >= 1 / 50 - 0.011 for a, b in pairwise(upstream.times[10:]))

    simulate(main)


def test_cancelled_herds_leave_nothing_behind():
    async def main():
        rng = random.Random(1)  # noqa: S311 - traffic, no secret
        upstream = Upstream(seconds=lambda: rng.choice([0.05, 0.5, 5.0]))
        layers = stack(upstream, rate=200.0, most=10)
        for _ in range(20):
            tasks = [asyncio.create_task(layers.send(call())) for _ in range(100)]
            await asyncio.sleep(rng.random())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (upstream.running, len(asyncio.all_tasks())) == (0, 1)
        upstream.seconds = 0.05
        ends = await arrive(layers, 20, 10)
        assert set(ends) == {200}
        assert not any(isinstance(end, UpstreamNotCalled) for end in ends)

    simulate(main)
