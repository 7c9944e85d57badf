"""When an upstream is left alone, and how it is found to work again."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from freeloop.errors import (
    UpstreamBodyInvalid,
    UpstreamBusy,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
    UrlRefused,
)
from freeloop.outbound import AiohttpTransport
from freeloop.outbound.breaker import Breaker, CircuitBreaker
from freeloop.testing import FaultyUpstream
from virtual_time import Upstream, arrive, broken, call, clock, refused, simulate


def layer(upstream, **options):
    return CircuitBreaker(upstream, lambda _: Breaker(**options), clock=clock)


def feed(breaker, now, outcomes, seconds=0.1):
    """Let a call end for each letter: s(ucceeds), f(ails), t(imes out), a(bandoned)."""
    for outcome in outcomes:
        ticket = breaker.admit(now)
        assert ticket is not None
        match outcome:
            case "s":
                breaker.succeed(ticket, now, seconds)
            case "f":
                breaker.fail(ticket, now)
            case "t":
                breaker.time_out(ticket, now, seconds)
            case "a":
                breaker.abandon(ticket)


def opened(now=0.0, **options):
    breaker = Breaker(**options)
    feed(breaker, now, "f" * 20)
    assert breaker.state == "open"
    return breaker


def test_what_is_usual_begins_with_the_first_answer_and_follows_the_others():
    breaker = Breaker()
    assert breaker.usual == 0
    feed(breaker, 0.0, "s", seconds=0.8)
    assert breaker.usual == 0.8
    feed(breaker, 0.0, "t", seconds=0.5)  # who had no time for the usual: it says nothing about the upstream
    assert breaker.totals == (1, 0, 0)
    feed(breaker, 0.0, "s", seconds=0.0)
    assert breaker.usual == pytest.approx(0.75)
    feed(breaker, 0.0, "s" * 100, seconds=0.2)
    assert breaker.usual == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("f" * 19, "closed"),
        ("f" * 20, "open"),
        ("s" * 10 + "f" * 9, "closed"),
        ("s" * 10 + "f" * 10, "open"),
        ("s" * 100 + "f" * 99, "closed"),
        ("s" * 100 + "f" * 100, "open"),
        ("a" * 100 + "f" * 19, "closed"),
        ("t" * 20, "open"),
    ],
)
def test_it_opens_by_the_share_of_enough_calls(outcomes, state):
    breaker = Breaker()
    feed(breaker, 0.0, outcomes)
    assert breaker.state == state


def test_what_is_older_than_the_window_does_not_count():
    breaker = Breaker()
    feed(breaker, 0.0, "f" * 19)
    feed(breaker, 11.0, "f" * 19)
    assert breaker.state == "closed"
    feed(breaker, 11.0, "f")
    assert breaker.state == "open"


def test_slow_answers_open_it_where_slow_is_said():
    plain, breaker = Breaker(), Breaker(slow=1.0)
    feed(plain, 0.0, "s" * 100, seconds=60.0)
    feed(breaker, 0.0, "s" * 4)
    feed(breaker, 0.0, "s" * 15, seconds=1.1)
    assert (plain.state, breaker.state) == ("closed", "closed")
    feed(breaker, 0.0, "s", seconds=1.1)
    assert breaker.state == "open"


def test_a_caller_without_time_blames_nobody():
    breaker = Breaker()
    feed(breaker, 0.0, "s" * 200, seconds=0.5)
    feed(breaker, 20.0, "t" * 100, seconds=0.01)
    assert breaker.state == "closed"
    feed(breaker, 20.0, "t" * 20, seconds=0.6)
    assert breaker.state == "open"


def test_the_pause_doubles_up_to_its_longest_and_starts_anew_after_a_success():
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(6):
        seconds = breaker.seconds_until(now)
        assert breaker.admit(now + seconds - 0.001) is None
        now += seconds
        pauses.append(seconds)
        feed(breaker, now, "f")
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    feed(breaker, now + 60.0, "s" + "f" * 20)
    assert breaker.seconds_until(now + 60.0) == 5.0


def test_a_slow_probe_has_failed():
    breaker = opened(slow=1.0)
    feed(breaker, 5.0, "s", seconds=2.0)
    assert breaker.state == "open"


def test_what_began_before_says_nothing_about_what_is():
    breaker = Breaker()
    early = [breaker.admit(0.0) for _ in range(30)]
    for ticket in early[:20]:
        breaker.fail(ticket, 1.0)
    assert breaker.seconds_until(1.0) == 5.0
    breaker.succeed(early[20], 2.0, 0.1)
    breaker.fail(early[21], 2.0)
    assert breaker.seconds_until(2.0) == 4.0  # neither closed nor prolonged
    probe = breaker.admit(6.0)
    breaker.abandon(early[22])
    breaker.succeed(early[23], 6.0, 0.1)
    assert breaker.state == "half-open"
    breaker.succeed(probe, 6.0, 0.1)
    for ticket in early[24:]:
        breaker.fail(ticket, 6.0)
    assert breaker.state == "closed"
    assert breaker.totals == (0, 0, 0)


class Breaking(RuleBasedStateMachine):
    """Any order of calls, ends, cancellations and pauses."""

    @initialize(calls=st.integers(1, 5), slow=st.none() | st.just(1.0))
    def begin(self, calls, slow):
        self.breaker = Breaker(calls=calls, slow=slow)
        self.now = 0.0
        self.under_way = []  # ticket and the state when it was given
        self.probe = None

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.9, 5.0, 61.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(callers=st.integers(1, 4))
    def arrive(self, callers):
        before, wait = self.breaker.state, self.breaker.seconds_until(self.now)
        tickets = [self.breaker.admit(self.now) for _ in range(callers)]
        admitted = [ticket for ticket in tickets if ticket is not None]
        match before:
            case "closed":
                assert len(admitted) == callers
            case "open":
                assert len(admitted) == (0 if wait else 1)
            case "half-open":
                assert not admitted
        if before == "open" and admitted:
            self.probe = admitted[0]
        self.under_way += admitted

    @rule(end=st.sampled_from(["s", "slow", "f", "t", "a"]), data=st.data())
    def finish(self, end, data):
        if not self.under_way:
            return
        ticket = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        before = self.breaker.state
        match end:
            case "s":
                self.breaker.succeed(ticket, self.now, 0.1)
            case "slow":
                self.breaker.succeed(ticket, self.now, 2.0)
            case "f":
                self.breaker.fail(ticket, self.now)
            case "t":
                self.breaker.time_out(ticket, self.now, 10.0)
            case "a":
                self.breaker.abandon(ticket)
        if ticket == self.probe:
            self.probe = None
            assert self.breaker.state == ("closed" if end == "s" else self.breaker.state)
            assert self.breaker.state != "half-open"
            if end == "a":
                assert self.breaker.seconds_until(self.now) == 0  # the next one is the probe
        elif before != "closed":
            assert self.breaker.state == before

    @invariant()
    def half_open_means_one_probe_under_way(self):
        if hasattr(self, "breaker"):
            assert (self.breaker.state == "half-open") == (self.probe is not None)
            assert self.breaker.seconds_until(self.now) <= 60.0


TestBreaking = Breaking.TestCase
TestBreaking.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("outcome", [refused(), broken(), UpstreamTimeout("slow"), 500, 502, 503, 504])
def test_failures_open_it(outcome):
    async def main():
        upstream = Upstream(answer=outcome)
        breaker = layer(upstream)
        await arrive(breaker, 10, 2)
        ends = await arrive(breaker, 10, 2)
        assert all(isinstance(end, UpstreamSuspended) for end in ends)
        assert len(upstream.calls) == 20

    simulate(main)


@pytest.mark.parametrize(
    "outcome", [200, 304, 400, 404, 429, UpstreamBodyInvalid("too much"), UpstreamBusy("no slot")]
)
def test_these_do_not(outcome):
    async def main():
        upstream = Upstream(answer=outcome)
        await arrive(layer(upstream), 10, 10)
        assert len(upstream.calls) == 100

    simulate(main)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (200, "closed"),
        (404, "closed"),
        (UpstreamBodyInvalid("too much"), "closed"),
        (503, "open"),
        (refused(), "open"),
        (UpstreamBusy("no slot"), "open"),
        (UrlRefused("not public"), "open"),
    ],
)
def test_a_probe_closes_it_only_where_the_upstream_has_answered(outcome, state):
    async def main():
        upstream = Upstream(answer=503)
        breaker = layer(upstream)
        await arrive(breaker, 100, 0.2)
        await asyncio.sleep(5.0)
        upstream.answer = outcome
        await arrive(breaker, 1, 1)
        assert len(upstream.calls) == 21
        ((_, policy),) = breaker.breakers
        assert policy.state == state
        # Where nothing was sent, nothing is known: the next call is the probe.
        known = not isinstance(outcome, UpstreamBusy | UrlRefused)
        assert policy.seconds_until(clock()) == (9.0 if state == "open" and known else 0)

    simulate(main)


def test_it_says_whom_it_did_not_call_and_when_it_will():
    async def main():
        breaker = layer(Upstream(answer=503))
        await arrive(breaker, 100, 0.2)
        with pytest.raises(UpstreamSuspended, match=r"source 'prices'.*last 20 calls, 20 failed") as error:
            await breaker.send(call())
        assert (error.value.status, error.value.source) == (503, "prices")
        assert error.value.headers == {"Retry-After": "5"}
        assert (await breaker.send(call(source="other"))).status_code == 503

    simulate(main)


@given(st.integers(1, 50), st.lists(st.sampled_from(["cancel", "fail"]), max_size=4))
@settings(deadline=None, max_examples=50)
def test_a_herd_finds_exactly_one_probe_on_its_way(callers, ends):
    async def main():
        upstream = Upstream(answer=503)
        breaker = layer(upstream)
        await arrive(breaker, 100, 0.2)
        upstream.seconds, now = 1.0, len(upstream.calls)
        for end in [*ends, "succeed"]:
            await asyncio.sleep(61.0)
            upstream.answer = 200 if end == "succeed" else 503
            tasks = [asyncio.create_task(breaker.send(call())) for _ in range(callers)]
            await asyncio.sleep(0.5)
            assert len(upstream.calls) == now + 1
            assert upstream.running == 1
            if end == "cancel":
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                # The one that comes next is the probe, at once, and again the only one.
                tasks = [asyncio.create_task(breaker.send(call())) for _ in range(callers)]
                await asyncio.sleep(0.5)
                now += 1
                assert len(upstream.calls) == now + 1
                assert upstream.running == 1
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(result, UpstreamSuspended) for result in results) == callers - 1
            now += 1
        assert await arrive(breaker, 10, 1) == [200] * 10

    simulate(main)


def test_an_upstream_that_dies_for_minutes_is_probed_and_found_again():
    async def main():
        upstream = Upstream(seconds=0.1)
        breaker = layer(upstream)
        assert set(await arrive(breaker, 50, 60)) == {200}
        upstream.answer, died = refused(), clock()
        await arrive(breaker, 50, 300)
        outage = [when - died for when in upstream.times if when >= died]
        # Until the failures are half of what the window holds, then one by one, ever more seldom.
        flood = [when for when in outage if when < 6]
        probes = [when for when in outage if when >= 6]
        assert len(flood) <= 270
        assert 5 <= len(probes) <= 9
        assert all(b - a >= 5 for a, b in pairwise(probes))
        upstream.answer, revived = 200, clock()
        ends = await arrive(breaker, 50, 90)
        first = min(when for when in upstream.times if when >= revived)
        assert first - revived <= 60.2
        assert set(ends[int((first - revived + 0.2) * 50) :]) == {200}

    simulate(main)


def test_an_upstream_that_hangs_holds_nobody_up_for_long():
    async def main():
        upstream = Upstream(seconds=0.1)
        breaker = layer(upstream)
        await arrive(breaker, 20, 30)
        upstream.seconds = 1e9
        before = len(upstream.calls)
        await arrive(breaker, 20, 120, call(timeout=2.0))
        assert len(upstream.calls) - before <= 160
        upstream.seconds = 0.1
        await asyncio.sleep(60)
        ends = await arrive(breaker, 20, 5)
        assert set(ends[3:]) == {200}  # the first is the probe, which takes 0.1 s

    simulate(main)


def test_waiting_for_a_turn_of_ours_is_not_slow():
    class Waiting(Upstream):
        async def send(self, request):
            await asyncio.sleep(5.0)
            return await super().send(request)

    async def main():
        breaker = layer(Waiting(seconds=0.1), slow=1.0)
        assert set(await arrive(breaker, 10, 30)) == {200}

    simulate(main)


async def test_over_a_real_connection():
    async with FaultyUpstream() as upstream:
        breaker = CircuitBreaker(AiohttpTransport(), lambda _: Breaker(calls=3, pause=60.0))
        try:
            for _ in range(3):
                with pytest.raises(UpstreamUnreachable):
                    await breaker.send(call(url=f"{upstream.url}/close"))
            with pytest.raises(UpstreamSuspended):
                await breaker.send(call(url=f"{upstream.url}/ok"))
            assert upstream.calls["/ok"] == 0
            assert (await breaker.send(call(url=f"{upstream.url}/ok", source="ok"))).status_code == 200
        finally:
            await breaker.close()
