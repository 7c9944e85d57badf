"""Latency that concurrency does not cause: nothing may be shed for it, or not for longer than a moment."""

# ruff: noqa: S311 - traffic, no secret
import math
import random

import pytest
from scenarios import burst, change
from traffic import Resource, Route, bimodal, constant, exponential, percentile, poisson, share_shed, simulate

from freeloop.gate.admission import Admission
from freeloop.gate.limit import AdaptiveLimit


@pytest.fixture
def admission():
    return Admission(AdaptiveLimit())


def find_shed(route):
    return [answer.arrived for answer in route.answers if answer.latency is None]


@pytest.mark.parametrize(("accept", "finish"), [(50e-6, 190e-6), (140e-6, 140e-6), (100e-6, 300e-6)])
def test_ten_thousand_at_once_are_all_admitted_and_so_are_the_next(admission, accept, finish):
    assert burst(admission, starts=(0, 10, 20), accept=accept, finish=finish) == [0, 0, 0]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rate", [5, 50, 500])
def test_a_slower_upstream_sheds_for_a_moment_at_most(admission, rate, seed):
    route = change(admission, rate=rate, places=math.inf, at=20, slowness=3, seed=seed)
    shed = find_shed(route)
    assert len(shed) <= 0.08 * len(route.answers)
    assert max(shed, default=0) - min(shed, default=0) <= max(2.0, 40 / rate)
    assert admission.baseline == pytest.approx(0.3, rel=0.05)
    assert admission.limit is None


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rate", [50, 500])
def test_an_hour_of_hits_and_then_misses_shed_for_a_moment_at_most(admission, rate, seed):
    seconds = iter(lambda: 0.001, None)
    route = Route(
        admission, poisson(rate, 0, 90, random.Random(seed)), lambda _: next(seconds), Resource(math.inf)
    )

    def miss():
        nonlocal seconds
        seconds = iter(lambda: 0.1, None)

    simulate([route], seed=seed, changes=[(60, miss)])
    shed = find_shed(route)
    assert all(60 < when < 62.5 for when in shed)
    assert len(shed) <= 0.5 * rate
    assert admission.baseline == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "service",
    [constant(0.1), exponential(0.1), bimodal(0.05, 0.3, 0.2), bimodal(0.02, 0.82, 0.1)],
    ids=["constant", "exponential", "bimodal", "wide"],
)
def test_a_resource_without_a_limit_sheds_nothing(admission, service, seed):
    route = change(admission, rate=50, places=math.inf, at=0, service=service, seed=seed, end=120.0)
    assert len(find_shed(route)) <= 3


def test_one_request_a_minute_is_never_shed(admission):
    route = change(
        admission, rate=1 / 60, places=math.inf, at=0, service=exponential(1.0), end=7 * 24 * 3600.0
    )
    assert not find_shed(route)
    assert len(route.answers) > 9_000


def test_quick_failures_leave_the_baseline_alone(admission):
    now = 0.0
    for _ in range(2000):
        now += 0.01
        admission.arrive(now)
        admission.leave(now, 0.1)
    for _ in range(20_000):
        now += 0.001
        admission.arrive(now)
        admission.leave(now, None)
    assert admission.baseline == pytest.approx(0.1)
    assert admission.limit is None


def test_a_burst_after_a_quiet_minute_is_not_shed(admission):
    rng = random.Random(1)
    overload = list(poisson(300, 0, 20, rng))
    after = [80 + index * 1e-4 for index in range(100)]
    route = Route(admission, iter(overload + after), constant(0.1), Resource(10))
    simulate([route], seed=1)
    assert share_shed(route.answers, 5, 20) > 0.5
    assert share_shed(route.answers, 79, 82) == 0


def test_a_day_with_three_spikes_sheds_in_the_spikes_only(admission):
    # Five at a time, 1 s each. Between a fifth and seven tenths of that over the day, and three spikes of
    # two minutes with three times of it.
    day, capacity = 24 * 3600.0, 5.0
    spikes = [(9 * 3600.0, 120.0), (13 * 3600.0, 120.0), (20 * 3600.0, 120.0)]
    rng = random.Random(1)

    def rate(now):
        return capacity * (0.45 - 0.25 * math.cos(2 * math.pi * now / day))

    def arrivals():
        now, ahead = 0.0, list(spikes)
        while now < day:
            inside = next((1 for start, length in ahead if start <= now < start + length), 0)
            now += rng.expovariate(3 * capacity if inside else rate(now))
            yield now

    route = Route(admission, arrivals(), constant(1.0), Resource(5))
    simulate([route], seed=1)
    inside = [
        answer
        for answer in route.answers
        if any(start <= answer.arrived < start + length for start, length in spikes)
    ]
    outside = [
        answer
        for answer in route.answers
        if not any(start - 1 <= answer.arrived < start + length + 60 for start, length in spikes)
    ]
    answered = [answer for answer in inside if answer.latency is not None]
    assert len(route.answers) > 190_000
    assert share_shed(outside) < 0.01
    assert percentile(outside, 0.99) <= 2.0
    assert len(answered) >= 0.9 * capacity * 360
    assert sum(answer.latency > 2.2 for answer in answered) <= 0.15 * len(answered)
