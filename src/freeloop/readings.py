"""What /metrics reads of the kit at each exposition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from freeloop.background import Background
from freeloop.database import Database
from freeloop.gate.admission import Admission
from freeloop.gate.middleware import Gate
from freeloop.metrics import Durations, Histogram, Reading, Values
from freeloop.outbound import Stacks
from freeloop.outbound.layers import Stack
from freeloop.tasks.worker import Worker
from freeloop.threads import ThreadPool, Threads
from freeloop.watch import Watch

T = TypeVar("T")


def _read(find: Callable[[], T | None], read: Callable[[T], Values]) -> Callable[[], Values]:
    """Return what reads a part of the kit while it is there."""
    return lambda: {} if (found := find()) is None else read(found)


def list_gate_readings(gate: Gate) -> list[Reading]:
    """Return the readings of requests, as a whole and by route."""

    def by_route(
        read: Callable[[Admission], float],
    ) -> Callable[[], dict[tuple[str, ...], float]]:
        # Methods of one path that declare different things have a bulkhead each.
        return lambda: {
            (bulkhead.template or "(none)", str(bulkhead.declaration)): read(bulkhead.admission)
            for bulkhead in gate.bulkheads
            if bulkhead.admission is not None
        }

    labels = ("route", "declares")
    return [
        Reading("freeloop_requests_running", "HTTP requests that run.", lambda: gate.running),
        Reading("freeloop_streams_running", "Answers that stream.", lambda: gate.streams),
        Reading("freeloop_websockets_open", "WebSockets that are open.", lambda: gate.websockets),
        Reading(
            "freeloop_route_running",
            "Requests that hold a place at the gate.",
            by_route(lambda admission: admission.running),
            labels,
        ),
        Reading(
            "freeloop_route_waiting",
            "Requests that wait for a place.",
            by_route(lambda admission: admission.waiting),
            labels,
        ),
        Reading(
            "freeloop_route_limit",
            "Requests that may run at once; +Inf where nothing is overloaded.",
            by_route(lambda admission: math.inf if admission.limit is None else admission.limit),
            labels,
        ),
        Reading(
            "freeloop_route_shed_total",
            "Requests that were refused with 503 since the route is overloaded.",
            by_route(lambda admission: admission.shed),
            labels,
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


def list_task_readings(worker: Callable[[], Worker | None]) -> list[Reading]:
    """Return the readings of durable tasks, where this process runs them."""
    of = partial(_read, worker)
    return [
        Reading(
            "freeloop_tasks_running",
            "Durable tasks that run here.",
            of(lambda found: Counter(each.route for each in found.running)),
            "task",
        ),
        Reading(
            "freeloop_tasks_ended_total",
            "Executions of durable tasks that ended here, by how.",
            of(lambda found: {how: float(count) for how, count in found.ended.items()}),
            ("task", "state"),
        ),
    ]


def list_pools(database: Database | None) -> list[Database]:
    """Return the pool of a database and those of its replicas."""
    return [] if database is None else [database, *(each.database for each in database.replicas.all)]


def list_database_readings(database: Callable[[], Database | None]) -> list[Reading | Histogram]:
    """Return the readings of the kit's database, where there is one."""
    of = partial(_read, database)

    def by_pool(read: Callable[[Database], T]) -> Callable[[], dict[str, T]]:
        return lambda: {pool.name: read(pool) for pool in list_pools(database())}

    return [
        Reading(
            "freeloop_database_connections_in_use",
            "Connections lent out.",
            by_pool(lambda pool: float(pool.in_use)),
            "pool",
        ),
        Reading(
            "freeloop_database_connections_idle",
            "Connections open and free.",
            by_pool(lambda pool: float(pool.idle)),
            "pool",
        ),
        Reading(
            "freeloop_database_waiting",
            "Callers that wait for a connection.",
            by_pool(lambda pool: float(pool.waiting)),
            "pool",
        ),
        Histogram(
            "freeloop_database_acquire_seconds",
            "How long callers have waited for a connection, in vain or not.",
            by_pool(lambda pool: pool.acquire_times),
            "pool",
        ),
        Reading(
            "freeloop_database_longest_lease_seconds",
            "Since when the connection is lent that is out for longest.",
            by_pool(lambda pool: pool.longest_lease),
            "pool",
        ),
        Reading(
            "freeloop_database_reads_total",
            "Reads of db.read by the way they went.",
            of(lambda found: found.read.counts),
            "way",
        ),
        Reading(
            "freeloop_database_replica_lag_seconds",
            "By how much a read replica is behind the primary at most; +Inf where that is not known.",
            of(lambda found: {each.database.name: found.replicas.lag(each) for each in found.replicas.all}),
            "pool",
        ),
        Reading(
            "freeloop_database_replica_left_out",
            "1 where a read replica answers no reads, since it is out of reach or too far behind.",
            of(
                lambda found: {
                    each.database.name: float(each.trouble is not None) for each in found.replicas.all
                }
            ),
            "pool",
        ),
        Reading(
            "freeloop_database_statements_total",
            "Runs of each named statement.",
            of(lambda found: found.statement_times.counts),
            "statement",
        ),
        Reading(
            "freeloop_database_statement_seconds_total",
            "How long the runs of each named statement took.",
            of(lambda found: found.statement_times.seconds),
            "statement",
        ),
        Reading(
            "freeloop_held_idle_total",
            "How often a transaction held its connection while its block waited for something else.",
            of(lambda found: found.held_idle.counts),
            ("place", "route"),
        ),
    ]


def list_outbound_readings(stacks: Callable[[], Stacks | None]) -> list[Reading]:
    """Return the readings of calls to external APIs, by source."""

    def of(layer: str, read: Callable[[Any], float]) -> Callable[[], dict[str, float]]:
        """Read the sources that use a layer."""
        return lambda: {
            name: read(found)
            for name, stack in stacks() or ()
            if (found := getattr(stack, layer)) is not None
        }

    def by(read: Callable[[Stack], dict[str, float]]) -> Callable[[], dict[tuple[str, ...], float]]:
        return lambda: {
            (name, kind): value for name, stack in stacks() or () for kind, value in read(stack).items()
        }

    source = "source"
    return [
        Reading(
            "freeloop_upstream_attempts_total",
            "Requests that were sent, retries and hedges included.",
            of("attempt", lambda layer: layer.attempts),
            source,
        ),
        Reading(
            "freeloop_upstream_running",
            "Requests that are under way.",
            of("bulkhead", lambda layer: layer.running),
            source,
        ),
        Reading(
            "freeloop_upstream_waiting",
            "Calls that wait for their turn by the rate limit, or for a place among the calls at once.",
            by(_count_waiting),
            (source, "for"),
        ),
        Reading(
            "freeloop_upstream_refused_total",
            "Calls that were not made: the breaker is open, or no turn or place came in time.",
            by(_count_refused),
            (source, "by"),
        ),
        Reading(
            "freeloop_upstream_suspended",
            "Upstreams that are left alone since they fail: 1 or 0 of a source, a number of hosts of (none).",
            of("breaker", lambda layer: layer.suspended),
            source,
        ),
        Reading(
            "freeloop_upstream_retries_total",
            "Attempts after one that failed.",
            of("retry", lambda layer: layer.retries),
            source,
        ),
        Reading(
            "freeloop_upstream_retries_refused_total",
            "Retries that the budget did not allow.",
            of("retry", lambda layer: layer.refused),
            source,
        ),
        Reading(
            "freeloop_upstream_retry_budget",
            "Retries and hedges that the budget allows now.",
            of("retry", lambda layer: layer.left),
            source,
        ),
        Reading(
            "freeloop_upstream_hedges_total",
            "Second requests since the first was late.",
            of("hedge", lambda layer: layer.hedges),
            source,
        ),
        Reading(
            "freeloop_upstream_shared_total",
            "Calls that waited for the answer of another one.",
            of("coalesce", lambda layer: layer.joined),
            source,
        ),
        Reading(
            "freeloop_upstream_cache_total",
            "Calls by what the cache did: a hit, a stale answer, a validated one, a miss.",
            by(_count_cached),
            (source, "result"),
        ),
        Reading(
            "freeloop_upstream_cache_bytes",
            "Memory that stored answers take.",
            of("cache", lambda layer: layer.shelf.bytes),
            source,
        ),
    ]


def _count_waiting(stack: Stack) -> dict[str, float]:
    found = {"rate": stack.rate, "concurrency": stack.bulkhead}
    return {kind: layer.waiting for kind, layer in found.items() if layer is not None}


def _count_refused(stack: Stack) -> dict[str, float]:
    found = {"breaker": stack.breaker, "rate": stack.rate, "concurrency": stack.bulkhead}
    return {kind: layer.refused for kind, layer in found.items() if layer is not None}


def _count_cached(stack: Stack) -> dict[str, float]:
    cache = stack.cache
    if cache is None:
        return {}
    return {"hit": cache.hits, "stale": cache.stale, "validated": cache.validated, "miss": cache.misses}


def list_watch_readings(watch: Callable[[], Watch | None]) -> list[Reading | Histogram]:
    """Return the readings of the event loop, where it is watched."""
    of = partial(_read, watch)

    def read_lags() -> dict[tuple[()], Durations]:
        return {} if (current := watch()) is None else {(): current.lags}

    return [
        Histogram("freeloop_loop_lag_seconds", "How late the event loop was.", read_lags),
        Reading(
            "freeloop_loop_busy_seconds_total",
            "For how long the event loop computed or was blocked.",
            of(lambda current: current.busy),
        ),
        Reading(
            "freeloop_loop_blocked_total",
            "How often the event loop was blocked.",
            of(lambda current: current.blocks),
            ("route", "cause"),
        ),
        Reading(
            "freeloop_host_stalled_seconds_total",
            "For how long the host did not let the process run while the event loop was due.",
            of(lambda current: current.stalled),
        ),
    ]
