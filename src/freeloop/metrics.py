"""What the service counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from freeloop.records import RequestRecord

Gauge = tuple[str, str, Callable[[], float]]
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


class Metrics(Collector):
    """One registry of its own for one app; nothing is global.

    Attributes:
        registry: What ``/metrics`` shows.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: list[Gauge] = []
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        labels = ("method", "route", "status")
        self._requests = Counter("freeloop_requests", "HTTP requests.", labels, registry=self.registry)
        self._durations = Histogram(
            "freeloop_request_duration_seconds",
            "Time from a request's arrival to its last byte, by route.",
            ("route",),
            registry=self.registry,
        )
        self.registry.register(self)

    def observe(self, record: RequestRecord) -> None:
        """Count one ended request. A path that matches no route is counted as ``(none)``."""
        method = record.method if record.method in _METHODS else "(other)"
        key = (method, record.route, record.status)
        series = self._series.get(key)
        if series is None:
            # Finding a labelled series costs more than counting in it. Bounded: routes come from the app,
            # statuses are three digits, and unknown methods share one name.
            route = record.route or "(none)"
            series = self._series[key] = (
                self._requests.labels(method, route, str(record.status)),
                self._durations.labels(route),
            )
        series[0].inc()
        series[1].observe(record.duration)

    def watch(self, gauges: Iterable[Gauge]) -> None:
        """Read these (name, help, function) anew at each exposition, in place of those before."""
        self._gauges = list(gauges)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the watched gauges (called by the registry)."""
        for name, says, read in self._gauges:
            yield GaugeMetricFamily(name, says, value=read())

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
