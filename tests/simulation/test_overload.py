"""Loads up to ten times what the resource bears: useful answers, and how long they take."""

# ruff: noqa: S311 - traffic, no secret
import random

import pytest
from scenarios import STEP, change, run_steps, steps
from traffic import (
    Resource,
    Route,
    bimodal,
    constant,
    exponential,
    goodput,
    percentile,
    poisson,
    simulate,
    uniform,
)

from freeloop.gate.admission import Admission
from freeloop.gate.limit import AdaptiveLimit

RISING = (0.5, 1, 1.5, 3, 10)
FALLING = (10, 3, 1.5, 1, 0.5)
MIXED = (1.5, 0.5, 10, 1, 3)
UNLOADED = 0.1  # s, of the constant service


def admission(priority="normal"):
    return Admission(AdaptiveLimit(priority=priority))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("loads", [RISING, FALLING, MIXED], ids=["rising", "falling", "mixed"])
@pytest.mark.parametrize("kind", [poisson, uniform])
def test_goodput_stays_at_nine_tenths_of_capacity(kind, loads, seed):
    for load, (share, _) in zip(
        loads, steps(admission(), constant(0.1), loads=loads, kind=kind, seed=seed), strict=True
    ):
        assert share >= 0.9, f"at {load} times the capacity"


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", [poisson, uniform])
def test_admitted_requests_take_at_most_twice_as_long_as_unloaded_ones(kind, seed):
    answers = run_steps(admission(), constant(0.1), loads=RISING, kind=kind, seed=seed).answers
    unloaded = percentile(answers, 0.99, 0, STEP)
    for index in range(1, len(RISING)):
        start = index * STEP
        assert percentile(answers, 0.99, start, start + STEP) <= 2.5 * unloaded
        assert percentile(answers, 0.99, start + 1, start + STEP) <= 2 * unloaded


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", [poisson, uniform])
def test_a_cold_start_under_ten_times_the_load_settles_within_its_first_second(kind, seed):
    answers = run_steps(admission(), constant(0.1), loads=(10,), kind=kind, seed=seed).answers
    late = [answer for answer in answers if answer.latency is not None and answer.latency > 1]
    # The queue that stands when the first answers show it cannot be taken back, only be worked off.
    assert len(late) <= 125
    assert max(answer.arrived for answer in late) < 0.25
    assert percentile(answers, 0.99, 1.0, STEP) <= 2 * UNLOADED


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "service", [exponential(0.1), bimodal(0.05, 0.3, 0.2)], ids=["exponential", "bimodal"]
)
def test_scattered_service_times_cost_little(service, seed):
    first, *others = steps(admission(), service, loads=RISING, seed=seed)
    assert first[0] >= 0.94
    for share, p99 in others:
        assert share >= 0.88
        assert p99 <= 2 * first[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_places_are_used(seed):
    measured = steps(
        admission(), constant(0.1), loads=(0.5, 1, 1.5, 3), seed=seed, places=1000, capacity=10_000, step=2
    )
    for share, p99 in measured[:2]:
        assert share >= 0.97
        assert p99 <= 0.13
    for share, p99 in measured[2:]:
        assert share >= 0.95
        assert p99 <= 0.3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_half_the_capacity_is_found_and_so_is_all_of_it_again(seed):
    answers = change(admission(), rate=90, places=10, at=20, places_then=5, back_at=40, seed=seed).answers
    assert goodput(answers, 22, 40) >= 0.9 * 50
    assert percentile(answers, 0.99, 25, 40) <= 0.25
    assert goodput(answers, 42, 60) >= 0.9 * 90
    assert percentile(answers, 0.99, 45, 60) <= 0.25


def test_without_a_limit_nothing_useful_is_answered():
    # What the other tests would measure if the limit did nothing.
    class Nothing(AdaptiveLimit):
        def decide(self, window):
            return True

    measured = steps(Admission(Nothing()), constant(0.1), loads=(0.5, 1.5))
    assert measured[1][0] < 0.3


def test_low_priority_yields_first():
    resource, rng = Resource(10), random.Random(1)
    low, normal = (
        Route(admission(priority), poisson(60, 0, 40, rng), constant(0.1), resource)
        for priority in ("low", "normal")
    )
    simulate([low, normal], seed=1)
    assert goodput(normal.answers, 10, 40) >= 0.9 * 60
    assert goodput(low.answers, 10, 40) < 0.7 * 60
    assert goodput(low.answers + normal.answers, 10, 40) >= 0.9 * 100
