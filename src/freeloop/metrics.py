"""What the service counts, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from freeloop.records import RequestRecord

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Durations:
    """How often something took how long: a histogram in plain numbers, for one thread.

    Args:
        bounds: The upper ends of its buckets, in seconds, rising.

    Attributes:
        count: How often.
        seconds: How long all took together.
    """

    __slots__ = ("_bounds", "_buckets", "count", "seconds")

    def __init__(self, bounds: Sequence[float] = _BOUNDS) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._buckets[bisect_left(self._bounds, seconds)] += 1
        self.count += 1
        self.seconds += seconds

    def list_buckets(self) -> list[tuple[str, int]]:
        """Return how many took no longer than each bound, as Prometheus wants them."""
        return list(zip((*map(str, self._bounds), "+Inf"), accumulate(self._buckets), strict=True))


Values: TypeAlias = float | Mapping[str, float] | Mapping[tuple[str, ...], float]


class Reading(NamedTuple):
    """A value that is read at each exposition.

    Attributes:
        name: Its name in Prometheus' way; one that ends with ``_total`` is a counter, any other a gauge.
        says: What it is.
        read: Returns the value; with a label, one value per value of the label; an empty mapping: none now.
        label: The name of the label, or the names of several; empty: it has none.
    """

    name: str
    says: str
    read: Callable[[], Values]
    label: str | tuple[str, ...] = ""


class Histogram(NamedTuple):
    """Durations that are read at each exposition.

    Attributes:
        name: As of a :class:`Reading`; it ends with ``_seconds``.
        says: What they are.
        read: Returns the durations by the value of the label; an empty mapping: none now.
        label: The name of the label; empty: it has none, and what is read has the empty tuple in its place.
    """

    name: str
    says: str
    read: Callable[[], Mapping[str, Durations] | Mapping[tuple[()], Durations]]
    label: str | tuple[()] = ()


class _Route:
    """What was counted for one route."""

    __slots__ = ("cancelled", "durations", "spent", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[tuple[str, int], int] = {}
        self.durations = Durations()
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
        self._readings: list[Reading | Histogram] = []
        self._routes: dict[str, _Route] = {}
        self.registry.register(self)

    def observe(self, record: RequestRecord) -> None:
        """Count one ended request. A path that matches no route is counted as ``(none)``."""
        route = self._routes.get(record.route)
        if route is None:
            route = self._routes[record.route] = _Route()
        key = (record.method if record.method in _METHODS else "(other)", record.status)
        route.statuses[key] = route.statuses.get(key, 0) + 1
        route.durations.add(record.duration)
        spent = route.spent
        for kind, seconds in record.times.items():
            spent[kind] = spent.get(kind, 0.0) + seconds
        if record.cause:
            route.cancelled[record.cause] = route.cancelled.get(record.cause, 0) + 1

    def watch(self, readings: Iterable[Reading | Histogram]) -> None:
        """Read these at each exposition, beside those before."""
        self._readings.extend(readings)

    def collect(self) -> Iterator[Metric]:
        """Yield everything in Prometheus' families (called by the registry)."""
        yield from self._collect_requests()
        for reading in self._readings:
            yield _collect_values(reading) if isinstance(reading, Reading) else _collect_durations(reading)

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
            measured = route.durations
            durations.add_metric((name,), buckets=measured.list_buckets(), sum_value=measured.seconds)
            for kind, seconds in route.spent.items():
                spent.add_metric((name, kind), seconds)
            for cause, count in route.cancelled.items():
                cancelled.add_metric((name, cause), count)
        yield from (requests, durations, spent, cancelled)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _collect_values(reading: Reading) -> Metric:
    family_of = CounterMetricFamily if reading.name.endswith("_total") else GaugeMetricFamily
    values = reading.read()
    if not isinstance(values, Mapping):
        return family_of(reading.name, reading.says, value=values)
    family = family_of(reading.name, reading.says, labels=_several(reading.label))
    for label, value in values.items():
        family.add_metric(_several(label), value)
    return family


def _collect_durations(reading: Histogram) -> Metric:
    family = HistogramMetricFamily(reading.name, reading.says, labels=_several(reading.label))
    for label, durations in reading.read().items():
        family.add_metric(_several(label), buckets=durations.list_buckets(), sum_value=durations.seconds)
    return family


def _several(labels: str | tuple[str, ...]) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else labels
