"""A discrete-event simulator: routes with an admission each, in front of resources that serve in order."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from freeloop.gate.admission import Verdict

Sampler = Callable[[random.Random], float]
_ARRIVE, _SERVED, _EXPIRE, _CHANGE = range(4)


def poisson(rate, start, end, rng):
    """Arrivals at random."""
    now = start
    while (now := now + rng.expovariate(rate)) < end:
        yield now


def uniform(rate, start, end, rng):
    """Arrivals in equal distances; ``rng`` is not needed."""
    for index in range(int((end - start) * rate)):
        yield start + (index + 0.5) / rate


def varying(rate, peak, start, end, rng):
    """Arrivals at random with a rate that changes: ``rate(now)``, at most ``peak``."""
    for now in poisson(peak, start, end, rng):
        if rng.random() * peak < rate(now):
            yield now


def constant(seconds):
    return lambda rng: seconds


def exponential(mean):
    return lambda rng: rng.expovariate(1 / mean)


def bimodal(short, long, share):
    """``share`` of the requests take ``long`` seconds."""
    return lambda rng: long if rng.random() < share else short


class Resource:
    """Serves ``places`` at a time, first come first served; infinite: a pure delay."""

    def __init__(self, places: float) -> None:
        self.places = places
        self.slowness = 1.0
        self.busy = 0
        self.queue: deque[_Request] = deque()


@dataclass
class Route:
    """One route: who decides, who comes when, and what each needs."""

    admission: Any
    arrivals: Iterable[float]
    service: Sampler
    resource: Resource
    newest_first: bool = False  # whom the gate takes from its queue
    answers: list[Answer] = field(default_factory=list)
    queue: deque[_Request] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request; ``latency`` with the time at the gate, None: shed."""

    arrived: float
    latency: float | None


class _Request:
    __slots__ = ("admitted", "arrived", "route", "waits")

    def __init__(self, route: Route, arrived: float) -> None:
        self.route = route
        self.arrived = self.admitted = arrived
        self.waits = False


def simulate(
    routes: list[Route], *, seed: int, changes: Iterable[tuple[float, Callable[[], None]]] = ()
) -> None:
    """Run all arrivals to their end; the outcome is in ``route.answers``."""
    _Simulation(routes, seed, changes).run()


class _Simulation:
    def __init__(self, routes, seed, changes) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - traffic, no secret
        self.order = itertools.count()
        self.events: list[Any] = []
        for route in routes:
            self.put_next(route, iter(route.arrivals))
        for when, change in changes:
            self.put(when, _CHANGE, change)

    def run(self) -> None:
        handle = {
            _ARRIVE: self.arrive,
            _SERVED: self.served,
            _EXPIRE: self.expire,
            _CHANGE: lambda _, change: change(),
        }
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            handle[kind](now, what)

    def put(self, when, kind, what) -> None:
        heapq.heappush(self.events, (when, next(self.order), kind, what))

    def put_next(self, route: Route, coming: Iterator[float]) -> None:
        if (when := next(coming, None)) is not None:
            self.put(when, _ARRIVE, (route, coming))

    def arrive(self, now, what) -> None:
        route, coming = what
        self.put_next(route, coming)
        verdict = route.admission.arrive(now)
        if verdict is Verdict.SHED:
            route.answers.append(Answer(now, None))
            return
        request = _Request(route, now)
        if verdict is Verdict.ADMIT:
            self.enter(now, request)
        else:
            request.waits = True
            route.queue.append(request)
            self.put(now + route.admission.wait_limit, _EXPIRE, request)

    def enter(self, now, request: _Request) -> None:
        request.admitted = now
        request.route.resource.queue.append(request)
        self.serve(now, request.route.resource)

    def serve(self, now, resource: Resource) -> None:
        while resource.queue and resource.busy < resource.places:
            request = resource.queue.popleft()
            resource.busy += 1
            self.put(now + request.route.service(self.rng) * resource.slowness, _SERVED, request)

    def served(self, now, request: _Request) -> None:
        route, resource = request.route, request.route.resource
        resource.busy -= 1
        self.serve(now, resource)
        route.answers.append(Answer(request.arrived, now - request.arrived))
        free = route.admission.leave(now, now - request.admitted)
        while free > 0 and route.queue:
            waits = route.queue.pop() if route.newest_first else route.queue.popleft()
            if waits.waits:
                waits.waits = False
                route.admission.promote()
                self.enter(now, waits)
                free -= 1

    def expire(self, now, request: _Request) -> None:
        if request.waits:
            request.waits = False
            request.route.admission.abandon()
            request.route.answers.append(Answer(request.arrived, None))


def share_shed(answers: Iterable[Answer], start: float = 0.0, end: float = math.inf) -> float:
    within = [answer for answer in answers if start <= answer.arrived < end]
    return sum(answer.latency is None for answer in within) / max(1, len(within))


def goodput(answers: Iterable[Answer], start: float, end: float, within: float = 1.0) -> float:
    """Answers a second that came within ``within`` seconds, of the requests that arrived in that time."""
    good = sum(
        answer.latency is not None and answer.latency <= within
        for answer in answers
        if start <= answer.arrived < end
    )
    return good / (end - start)


def percentile(answers: Iterable[Answer], share: float, start: float = 0.0, end: float = math.inf) -> float:
    """The latency of admitted requests that arrived in that time."""
    ordered = sorted(
        answer.latency for answer in answers if answer.latency is not None and start <= answer.arrived < end
    )
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan
