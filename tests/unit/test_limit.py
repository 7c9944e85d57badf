"""The policy by itself: what it takes for evidence, and what it makes of it."""

import pytest

from freeloop.gate.baseline import Baseline, Window
from freeloop.gate.limit import AdaptiveLimit


def window(now, mean, **changes):
    """A second in which 100 requests ended, as many as ran."""
    values = {
        "now": now,
        "span": 1.0,
        "rate": 100.0,
        "count": 100,
        "mean": mean,
        "variance": 0.0001,
        "earlier_mean": 0.0,
        "drained_rate": 0.0,
        "fresh": 1.0,
        "running": int(100 * mean),
        "growth": 0,
        "pressed": False,
    }
    return Window(**values | changes)


@pytest.fixture
def limit():
    """A policy that knows its baseline: 0.1 s, with ten running."""
    limit = AdaptiveLimit()
    for second in range(10):
        assert limit.decide(window(second, 0.1))
    return limit


def test_there_is_no_limit_without_evidence(limit):
    assert limit.limit is None
    assert limit.baseline == pytest.approx(0.1)


def test_a_queue_that_grows_sets_the_limit_to_what_fits_without_it(limit):
    assert limit.decide(window(10, 0.3, running=90, growth=60))
    assert limit.limit == 10  # 100 a second, 0.1 s each


def test_a_queue_that_stands_is_tried_with_a_smaller_step_when_it_shows_twice(limit):
    limit.decide(window(10, 0.2, running=20))
    assert limit.limit is None
    limit.decide(window(11, 0.2, running=20))
    assert limit.limit == 12


def test_a_latency_that_falls_with_the_limit_keeps_it(limit):
    for second in (10, 11):
        limit.decide(window(second, 0.2, running=20))
    limit.decide(window(12, 0.12, running=12, pressed=True, earlier_mean=0.2))
    assert limit.limit is not None
    assert limit.baseline == pytest.approx(0.1)


def test_a_latency_that_does_not_fall_with_the_limit_lifts_it_and_is_the_new_baseline(limit):
    for second in (10, 11):
        limit.decide(window(second, 0.2, running=20))
    limit.decide(window(12, 0.2, running=12, rate=60.0, pressed=True, earlier_mean=0.2))
    assert limit.limit is None
    assert limit.baseline == pytest.approx(0.2)


def test_a_burst_that_is_worked_off_is_no_evidence(limit):
    for second in range(10, 20):
        limit.decide(window(second, 0.9, running=900 - 90 * (second - 10), growth=-90))
    assert limit.limit is None
    assert limit.baseline == pytest.approx(0.1)


def test_latencies_that_scatter_are_evidence_only_when_there_are_many(limit):
    few = window(10, 0.2, running=25, count=10, variance=0.04)
    assert not limit.decide(few)
    assert limit.limit is None
    assert limit.needed > 10


def test_the_limit_follows_a_capacity_that_grows(limit):
    limit.decide(window(10, 0.3, running=90, growth=60))
    limit.decide(window(11, 0.1, running=10, pressed=True, earlier_mean=0.9, drained_rate=100.0))
    seen = [limit.limit]
    for second in range(5):
        limit.decide(window(12 + second / 10, 0.1, running=limit.limit, rate=limit.limit * 10, pressed=True))
        seen.append(limit.limit)
    assert seen == sorted(seen)
    assert seen[-1] >= 2 * seen[0]


def test_a_trial_lowers_the_limit_now_and_then_and_restores_it(limit):
    limit.decide(window(10, 0.3, running=90, growth=60))
    limit.decide(window(11, 0.1, running=10, pressed=True, earlier_mean=0.9))
    second, seen = 12.0, []
    while second < 40:
        latency = max(0.1, limit.limit / 100)  # ten at a time
        limit.decide(window(second, latency, running=limit.limit, pressed=True))
        seen.append(limit.limit)
        second += 0.2
    assert min(seen[20:]) <= 9
    assert 12 <= seen[-1] <= 15
    assert seen[20:].count(min(seen[20:])) <= 4


@pytest.mark.parametrize(("priority", "engages"), [("low", 0.14), ("normal", 0.15), ("high", 0.26)])
def test_a_priority_is_a_tolerance(priority, engages):
    def engaged_at(latency):
        limit = AdaptiveLimit(priority=priority)
        for second in range(10):
            limit.decide(window(second, 0.1))
        limit.decide(window(10, latency, running=100, growth=80))
        return limit.limit is not None

    assert engaged_at(engages)
    assert not engaged_at(engages - 0.02)


def test_microseconds_are_no_overload():
    limit = AdaptiveLimit()
    for second in range(10):
        limit.decide(window(second, 0.0005, running=1, variance=1e-8))
    for second in range(10, 20):
        limit.decide(window(second, 0.005, running=40, growth=20, variance=1e-8))
    assert limit.limit is None


def test_a_first_baseline_of_short_requests_is_mended_by_the_long_ones():
    baseline = Baseline(window(0, 0.02, count=10, variance=0.0))
    for second in range(1, 20):
        baseline.learn(window(second, 0.1, count=10, variance=0.06))
    assert baseline.mean == pytest.approx(0.1, rel=0.1)


def test_a_baseline_falls_at_once_and_rises_slowly():
    baseline = Baseline(window(0, 0.1, count=1000))
    baseline.learn(window(1, 0.14))
    assert baseline.mean == pytest.approx(0.1, rel=0.05)
    baseline.learn(window(2, 0.03))
    assert baseline.mean == pytest.approx(0.03)
