"""What /metrics reads of the kit at each exposition."""

from __future__ import annotations

import math
from collections.abc import Callable

from freeloop.background import Background
from freeloop.gate.admission import Admission
from freeloop.gate.middleware import Gate
from freeloop.metrics import Reading
from freeloop.threads import ThreadPool, Threads


def list_gate_readings(gate: Gate) -> list[Reading]:
    """Return the readings of requests, as a whole and by route."""

    def by_route(read: Callable[[Admission], float]) -> Callable[[], dict[str, float]]:
        return lambda: {
            bulkhead.template or "(none)": read(bulkhead.admission)
            for bulkhead in gate.bulkheads
            if bulkhead.admission is not None
        }

    return [
        Reading("freeloop_requests_running", "HTTP requests that run.", lambda: gate.running),
        Reading("freeloop_streams_running", "Answers that stream.", lambda: gate.streams),
        Reading("freeloop_websockets_open", "WebSockets that are open.", lambda: gate.websockets),
        Reading(
            "freeloop_route_running",
            "Requests that hold a place at the gate.",
            by_route(lambda admission: admission.running),
            "route",
        ),
        Reading(
            "freeloop_route_waiting",
            "Requests that wait for a place.",
            by_route(lambda admission: admission.waiting),
            "route",
        ),
        Reading(
            "freeloop_route_limit",
            "Requests that may run at once; +Inf where nothing is overloaded.",
            by_route(lambda admission: math.inf if admission.limit is None else admission.limit),
            "route",
        ),
        Reading(
            "freeloop_route_shed_total",
            "Requests that were refused with 503 since the route is overloaded.",
            by_route(lambda admission: admission.shed),
            "route",
        ),
    ]


def list_work_readings(threads: Callable[[], Threads | None], background: Background) -> list[Reading]:
    """Return the readings of threads, by pool, and of background executions."""

    def by_pool(read: Callable[[ThreadPool], float]) -> Callable[[], dict[str, float]]:
        return lambda: {pool.name: read(pool) for pool in threads() or ()}

    return [
        Reading(
            "freeloop_threads_in_use",
            "Threads that run now.",
            by_pool(lambda pool: pool.in_use),
            "pool",
        ),
        Reading(
            "freeloop_threads_waiting",
            "Calls that wait for a thread.",
            by_pool(lambda pool: pool.waiting),
            "pool",
        ),
        Reading(
            "freeloop_threads_limit", "Threads that may run at once.", by_pool(lambda pool: pool.size), "pool"
        ),
        Reading("freeloop_background_running", "Background executions.", lambda: len(background)),
        Reading(
            "freeloop_background_failed_total",
            "Background executions that failed.",
            lambda: background.failed,
        ),
    ]
