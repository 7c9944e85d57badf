"""What the service counts, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from freeloop.records import RequestRecord

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Reading(NamedTuple):
    """A value that is read at each exposition.

    Attributes:
        name: Its name in Prometheus' way; one that ends with ``_total`` is a counter, any other a gauge.
        says: What it is.
        read: Returns the value; with a label, one value per value of the label.
        label: The name of the label; empty: it has none.
    """

    name: str
    says: str
    read: Callable[[], float | Mapping[str, float]]
    label: str = ""


class _Route:
    """What was counted for one route."""

    __slots__ = ("buckets", "cancelled", "seconds", "spent", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[tuple[str, int], int] = {}
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0
        self.spent: dict[str, float] = {}
        self.cancelled: dict[str, int] = {}


class Metrics(Collector):
    """One registry of its own for one app; nothing is global.

    Requests are counted in plain numbers on the loop's thread, and become Prometheus' families when they are
    asked for: its own counters take a lock at each step, and more time than all the rest of a request's way
    through the gate.

    Attributes:
        registry: What ``/metrics`` shows.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._readings: list[Reading] = []
        self._routes: dict[str, _Route] = {}
        self.registry.register(self)

    def observe(self, record: RequestRecord) -> None:
        """Count one ended request. A path that matches no route is counted as ``(none)``."""
        route = self._routes.get(record.route)
        if route is None:
            route = self._routes[record.route] = _Route()
        key = (record.method if record.method in _METHODS else "(other)", record.status)
        route.statuses[key] = route.statuses.get(key, 0) + 1
        route.buckets[bisect_left(_BOUNDS, record.duration)] += 1
        route.seconds += record.duration
        spent = route.spent
        for kind, seconds in record.times.items():
            spent[kind] = spent.get(kind, 0.0) + seconds
        if record.cause:
            route.cancelled[record.cause] = route.cancelled.get(record.cause, 0) + 1

    def watch(self, readings: Iterable[Reading]) -> None:
        """Read these at each exposition, beside those before."""
        self._readings.extend(readings)

    def collect(self) -> Iterator[Metric]:
        """Yield everything in Prometheus' families (called by the registry)."""
        yield from self._collect_requests()
        for reading in self._readings:
            values = reading.read()
            family_of = CounterMetricFamily if reading.name.endswith("_total") else GaugeMetricFamily
            if isinstance(values, Mapping):
                family = family_of(reading.name, reading.says, labels=[reading.label])
                for label, value in values.items():
                    family.add_metric([label], value)
                yield family
            else:
                yield family_of(reading.name, reading.says, value=values)

    def _collect_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "freeloop_requests", "HTTP requests.", labels=("method", "route", "status")
        )
        durations = HistogramMetricFamily(
            "freeloop_request_duration_seconds",
            "Time from a request's arrival to its last byte, by route.",
            labels=("route",),
        )
        spent = CounterMetricFamily(
            "freeloop_request_time_seconds",
            "Where the time of requests went, by route and class.",
            labels=("route", "class"),
        )
        cancelled = CounterMetricFamily(
            "freeloop_requests_cancelled",
            "Requests that were cancelled, by route and cause.",
            labels=("route", "cause"),
        )
        for template, route in self._routes.items():
            name = template or "(none)"
            for (method, status), count in route.statuses.items():
                requests.add_metric((method, name, str(status)), count)
            counts = zip((*map(str, _BOUNDS), "+Inf"), accumulate(route.buckets), strict=True)
            durations.add_metric((name,), buckets=list(counts), sum_value=route.seconds)
            for kind, seconds in route.spent.items():
                spent.add_metric((name, kind), seconds)
            for cause, count in route.cancelled.items():
                cancelled.add_metric((name, cause), count)
        yield from (requests, durations, spent, cancelled)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
