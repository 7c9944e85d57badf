"""The traffic that policies are judged by: the same for the one we ship and for those in bench/limits."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

from traffic import Resource, Route, constant, goodput, percentile, poisson, simulate

from freeloop.gate.admission import Verdict

STEP = 20.0  # s
CAPACITY = 100.0  # requests a second: ten at a time, 0.1 s each


def run_steps(admission, service, *, loads, kind=poisson, seed=1, places=10, capacity=CAPACITY, step=STEP):
    """Offer multiples of the capacity, one after the other; return the route."""
    rng = random.Random(seed)  # noqa: S311 - traffic, no secret
    arrivals = itertools.chain.from_iterable(
        kind(load * capacity, index * step, (index + 1) * step, rng) for index, load in enumerate(loads)
    )
    route = Route(admission, arrivals, service, Resource(places))
    simulate([route], seed=seed)
    return route


def steps(admission, service, *, loads, **options):
    """Return for each step the goodput, as a share of what could be served, and the 99th percentile in s."""
    answers = run_steps(admission, service, loads=loads, **options).answers
    step, capacity = options.get("step", STEP), options.get("capacity", CAPACITY)
    offered = [sum(i * step <= a.arrived < (i + 1) * step for a in answers) / step for i in range(len(loads))]
    return [
        (
            goodput(answers, index * step, (index + 1) * step) / min(capacity, offered[index]),
            percentile(answers, 0.99, index * step, (index + 1) * step),
        )
        for index in range(len(loads))
    ]


def change(admission, *, rate, places, at, slowness=1.0, places_then=None, back_at=None, end=60.0, **options):
    """Offer a steady load to a resource that changes ``at`` some second; return the route."""
    seed = options.get("seed", 1)
    resource = Resource(places)
    route = Route(
        admission,
        poisson(rate, 0, end, random.Random(seed)),  # noqa: S311 - traffic, no secret
        options.get("service", constant(0.1)),
        resource,
    )

    def turn(places: Any, slowness: float) -> None:
        resource.places, resource.slowness = places, slowness

    changes = [(at, lambda: turn(places_then or places, slowness))]
    if back_at is not None:
        changes.append((back_at, lambda: turn(places, 1.0)))
    simulate([route], seed=seed, changes=changes)
    return route


def burst(admission, *, starts=(0.0, 10.0), count=10_000, sleep=2.0, accept=50e-6, finish=190e-6):
    """All at once, each asleep for 2 s and then in line for the one loop; return how many each burst shed."""
    shed = []
    for start in starts:
        events = [(start, index, 0.0) for index in range(count)]
        loop_free = refused = 0.0
        order = itertools.count(count)
        while events:
            when, _, began = heapq.heappop(events)
            loop_free = max(when, loop_free) + (finish if began else accept)
            if began:
                admission.leave(loop_free, loop_free - began)
            elif admission.arrive(loop_free) is Verdict.ADMIT:
                heapq.heappush(events, (loop_free + sleep, next(order), loop_free))
            else:
                refused += 1
        shed.append(int(refused))
    return shed
