"""A second request where an answer is late: when, how often, and what becomes of the loser."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloop.errors import OutboundError, UpstreamTimeout, UpstreamUnreachable
from freeloop.outbound import AiohttpTransport
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.hedge import Hedge, HedgeDelay, Quantile
from freeloop.outbound.retry import Retry
from freeloop.outbound.sources import Sources
from freeloop.testing import FaultyUpstream, eventually
from virtual_time import Upstream, arrive, broken, call, clock, simulate

SHAPES = {
    "exponential": lambda rng: rng.expovariate(10),
    "lognormal": lambda rng: rng.lognormvariate(-3, 1),
    "uniform": lambda rng: rng.uniform(0.05, 0.15),
    "bimodal": lambda rng: rng.choice([0.01] * 9 + [1.0]) * rng.uniform(0.9, 1.1),
}


class Fixed(HedgeDelay):
    """A delay that is known from the start."""

    @property
    def seconds(self):
        return 1.0


def layer(upstream, make=lambda _: Fixed(), *, share=1.0):
    kept = Sources(lambda _: RetryBudget(share=share, minimum=10.0 if share else 0.0))
    return Hedge(upstream, kept, make, clock=clock)


def scripted(*ends):
    upstream = Upstream()
    upstream.script.extend(ends)
    return upstream


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_the_estimate_has_its_share_of_the_values_below_it(shape, share):
    rng = random.Random(1)  # noqa: S311 - latencies, no secret
    quantile, above = Quantile(share), 0
    for number in range(22_000):
        value = SHAPES[shape](rng)
        above += number >= 2000 and value > quantile.value
        quantile.add(value)
    assert above / 20_000 == pytest.approx(1 - share, rel=0.25, abs=0.004)


def test_the_estimate_follows_an_upstream_that_slows_down_and_recovers():
    rng = random.Random(1)  # noqa: S311 - latencies, no secret
    quantile = Quantile(0.95)
    for factor in (1, 10, 1):
        for _ in range(2000):
            quantile.add(factor * rng.uniform(0.09, 0.11))
        assert factor * 0.1 < quantile.value < factor * 0.12


@given(st.lists(st.floats(0, 1e6)), st.floats(0.01, 0.99))
def test_the_estimate_is_finite_and_not_negative(values, share):
    quantile = Quantile(share)
    for value in values:
        quantile.add(value)
        assert 0 <= quantile.value <= 2e6


def test_too_few_answers_give_no_delay():
    delay = HedgeDelay()
    for _ in range(20):
        assert delay.seconds is None
        delay.learn(0.1)
    assert delay.seconds == pytest.approx(0.1, rel=0.5)


def test_the_second_request_wins_and_the_first_is_cancelled():
    async def main():
        upstream = scripted((9.0, 200), (0.5, 203))
        started = clock()
        assert (await layer(upstream).send(call())).status_code == 203
        assert clock() - started == pytest.approx(1.5)
        assert (upstream.running, upstream.cancelled) == (0, 1)
        assert [request.timeout for _, request in upstream.calls] == pytest.approx([10.0, 9.0])
        assert asyncio.current_task().cancelling() == 0
        assert len(asyncio.all_tasks()) == 1

    simulate(main)


def test_the_first_request_wins_and_the_second_is_cancelled():
    async def main():
        upstream = scripted((1.2, 200), (0.5, 203))
        assert (await layer(upstream).send(call())).status_code == 200
        assert (upstream.running, upstream.cancelled, len(upstream.calls)) == (0, 1, 2)
        assert len(asyncio.all_tasks()) == 1

    simulate(main)


@pytest.mark.parametrize(
    ("request_", "seconds"), [(call(), 0.9), (call("POST"), 5.0), (call(timeout=1.0), 0.5)]
)
def test_no_second_request(request_, seconds):
    async def main():
        upstream = Upstream(seconds=seconds)
        assert (await layer(upstream).send(request_)).status_code == 200
        assert len(upstream.calls) == 1

    simulate(main)


def test_no_second_request_without_budget():
    async def main():
        upstream = Upstream(seconds=5.0)
        assert (await layer(upstream, share=0.0).send(call())).status_code == 200
        assert len(upstream.calls) == 1

    simulate(main)


def test_second_requests_leave_half_of_the_budget_to_retries():
    async def main():
        upstream = Upstream(seconds=5.0)
        kept = Sources(lambda _: RetryBudget(minimum=0.0))
        for _ in range(200):
            kept.of(call()).deposit(clock())
        hedge = Hedge(upstream, kept, lambda _: Fixed(), clock=clock)
        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(hedge.send(call()))
        assert len(upstream.calls) == 40

    simulate(main)


@pytest.mark.parametrize("failure", [broken(), 503])
def test_a_request_that_fails_leaves_it_to_the_other(failure):
    async def main():
        upstream = scripted((1.1, failure), (2.0, 203))
        assert (await layer(upstream).send(call())).status_code == 203
        upstream = scripted((3.0, 200), (0.1, failure))
        assert (await layer(upstream).send(call())).status_code == 200
        assert (upstream.running, upstream.cancelled) == (0, 0)

    simulate(main)


def test_both_fail_as_the_first_did():
    async def main():
        with pytest.raises(UpstreamUnreachable, match="the first"):
            await layer(scripted((1.5, UpstreamUnreachable("the first")), (1.0, broken()))).send(call())
        assert (await layer(scripted((1.5, 503), (1.0, 502))).send(call())).status_code == 503
        with pytest.raises(UpstreamTimeout):
            await layer(Upstream(seconds=1e9)).send(call(timeout=3.0))

    simulate(main)


@settings(deadline=None)
@given(
    st.sampled_from([0.5, 1.0, 1.2, 1.5, 2.0, 9.0]),
    st.sampled_from([0.0, 0.2, 0.5, 1.0, 9.0]),
    st.sampled_from([200, 503, None]),
    st.sampled_from([200, 503, None]),
    st.sampled_from([0.0, 0.5, 1.0, 1.2, 1.5, 2.0, 3.0, 20.0]),
    st.booleans(),
)
def test_whatever_comes_together_nothing_is_left_behind(first, second, end, other, cancel_at, early):
    async def main():
        upstream = scripted((first, end or broken()), (second, other or broken()))
        loop = asyncio.get_running_loop()
        states = []

        async def one():
            task = asyncio.current_task()
            try:
                async with asyncio.timeout(30):
                    return (await layer(upstream).send(call())).status_code
            except OutboundError as error:
                return error
            finally:
                states.append(task.cancelling())

        if early:  # the timer that was set first fires first
            loop.call_later(cancel_at, lambda: task.cancel())  # noqa: PLW0108 - there is no task yet
        task = asyncio.create_task(one())
        if not early:
            await asyncio.sleep(0)
            loop.call_later(cancel_at, task.cancel)
        cancelled_at = clock() + cancel_at
        try:
            result = await task
        except asyncio.CancelledError:
            assert clock() == pytest.approx(cancelled_at)
            assert states in ([1], [])
        else:
            assert states == [0] or clock() >= cancelled_at - 1e-9
            # The call has 10 s, and the second request what is left after its delay of 1 s.
            timely = {answer for answer, took in ((end, first), (other, 1.0 + second)) if took < 10}
            if 200 in timely and len(upstream.calls) == 2 and end != 503:
                assert result == 200
        assert upstream.running == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


def test_a_cancellation_survives_a_second_request_that_wins_meanwhile():
    """The first request takes its time to clean up; the answer of the second one is for nobody."""

    async def main():
        class Slow(Upstream):
            async def send(self, request):
                try:
                    return await super().send(request)
                except asyncio.CancelledError:
                    await asyncio.sleep(2.0)
                    raise

        upstream = Slow()
        upstream.script.extend([(9.0, 200), (1.0, 203)])
        task = asyncio.create_task(layer(upstream).send(call()))
        await asyncio.sleep(1.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(upstream.calls) == 2
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


def test_a_call_that_is_made_while_cancelled_is_not_hedged():
    """Nobody could tell the cancellation of its caller from the hedge's own."""

    async def main():
        upstream = scripted((5.0, 200), (0.5, 203))

        async def clean_up():
            try:
                await asyncio.sleep(100)
            finally:
                assert (await layer(upstream).send(call())).status_code == 200

        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(upstream.calls) == 1

    simulate(main)


def test_calls_that_are_answered_in_time_share_a_timer():
    async def main():
        loop = asyncio.get_running_loop()
        timers = []
        hedge = layer(Upstream(seconds=0.01))

        def count(delay, callback, *args, context=None):
            timers.extend([delay] if callback == hedge._sweep else [])
            return type(loop).call_later(loop, delay, callback, *args, context=context)

        loop.call_later = count
        await asyncio.gather(*[hedge.send(call()) for _ in range(1000)])
        for _ in range(500):
            await hedge.send(call())
        assert len(timers) <= 6  # one a second, which is the delay

    simulate(main)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9])
def test_each_call_is_hedged_after_its_own_delay(at):
    async def main():
        upstream = scripted((9.0, 200), (9.0, 201), (0.1, 202), (0.1, 203))
        hedge = layer(upstream)
        first = asyncio.create_task(hedge.send(call()))
        await asyncio.sleep(at)
        await asyncio.gather(first, hedge.send(call()))
        went = [came - upstream.calls[0][0] for came, _ in upstream.calls]
        assert went == pytest.approx([0, at, 1.0, 1.0 + at], abs=0.002)

    simulate(main)


def test_the_tail_becomes_short_for_a_load_within_the_budget():
    rng = random.Random(1)  # noqa: S311 - latencies, no secret

    def seconds():
        return 3.0 if rng.random() < 0.03 else rng.uniform(0.05, 0.1)

    async def main(hedged):
        upstream = Upstream(seconds=seconds)
        kept = Sources(lambda _: RetryBudget())
        stack = Retry(Hedge(upstream, kept, clock=clock) if hedged else upstream, kept, clock=clock)
        took = []

        async def one():
            started = clock()
            await stack.send(call())
            took.append(clock() - started)

        async with asyncio.TaskGroup() as group:
            for _ in range(5000):
                group.create_task(one())
                await asyncio.sleep(0.01)
        return len(upstream.calls), sorted(took)[int(0.99 * len(took))]

    calls, tail = simulate(lambda: main(hedged=True))
    assert simulate(lambda: main(hedged=False)) == (5000, pytest.approx(3.0))
    assert calls <= 5500
    assert tail < 0.3


def test_an_upstream_that_is_slow_for_all_is_not_asked_twice_by_all():
    async def main():
        upstream = Upstream(seconds=0.1)
        kept = Sources(lambda _: RetryBudget())
        stack = Retry(Hedge(upstream, kept, clock=clock), kept, clock=clock)
        await arrive(stack, 50, 60)
        upstream.seconds = 2.0
        await arrive(stack, 50, 300)
        upstream.answer = 503
        await arrive(stack, 50, 300)
        offered = 50 * 660
        assert len(upstream.calls) <= 1.1 * offered

    simulate(main)


async def test_the_loser_frees_its_socket():
    async with FaultyUpstream() as upstream:
        upstream.script("/a", "hang", "ok")
        kept = Sources(lambda _: RetryBudget())

        class Soon(HedgeDelay):
            seconds = 0.05

        hedge = Hedge(AiohttpTransport(), kept, lambda _: Soon())
        try:
            assert (await hedge.send(call(url=f"{upstream.url}/a"))).status_code == 200
            assert upstream.calls["/a"] == 2
            await eventually(lambda: upstream.connections == 1)
        finally:
            await hedge.close()
