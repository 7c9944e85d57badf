"""docs/reference/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from freeloop.service.app import create_app
from freeloop.settings import Settings
from handbook.markdown import code, page, table
from handbook.undocumented import say

INTRODUCTION = (
    "What `/metrics` shows, in Prometheus' text format; [Operations](../operations.md#metrics) says what the "
    "labels mean. A name that ends with `_total` is that of a counter; one with `_bucket`, `_sum` and "
    "`_count` is a histogram."
)


def render(families: Iterable[Metric] | None = None) -> str:
    """Return the page.

    Raises:
        Undocumented: A metric has no help text.
    """
    if families is None:
        families = create_app(Settings(_env_file=None)).state.freeloop.metrics.collect()
    rows = []
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        # Families keep the names of their labels to themselves; without a sample nothing else tells them.
        labels = [code(label) for label in getattr(family, "_labelnames", ()) if label]
        says = say(family.documentation, f"the metric {name}", "give it words where it is made")
        rows.append([code(name), ", ".join(labels), says])
    return page("Metrics", INTRODUCTION, table(["Metric", "Labels", "What it is"], sorted(rows)))
