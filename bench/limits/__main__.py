"""python -m bench limits: every candidate through the same simulated traffic, as a Markdown table."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from bench.limits.candidates import Aimd, CoDel, Counting, Envoy, Fixed, Gradient2, Unlimited, Vegas
from bench.report import table
from bench.servers import ROOT
from freeloop.gate.admission import Admission
from freeloop.gate.limit import AdaptiveLimit

sys.path.insert(0, str(ROOT / "tests" / "simulation"))

from scenarios import burst, change, steps
from traffic import constant, exponential, goodput, share_shed

CANDIDATES: dict[str, Callable[[], Any]] = {
    "no limit": lambda: Counting(Unlimited()),
    "fixed at 13": lambda: Counting(Fixed()),
    "AIMD": lambda: Counting(Aimd()),
    "Vegas": lambda: Counting(Vegas()),
    "Gradient2": lambda: Counting(Gradient2()),
    "Envoy's gradient": lambda: Counting(Envoy()),
    "CoDel": CoDel,
    "**chosen**": lambda: Admission(AdaptiveLimit()),
}
HEADER = (
    "",
    "goodput, worst step",
    "p99, worst step",
    "goodput, cold 10×",
    "goodput, exponential",
    "burst of 10,000 shed",
    "slower upstream: shed",
    "capacity halved: goodput",
    "back again",
)


SEEDS = range(1, 6)


def measure(make: Callable[[], Any]) -> list[str]:
    """The worst of several seeds, as one row."""
    rows = list(zip(*(_measure(make, seed) for seed in SEEDS), strict=True))
    good, p99, cold, scattered, shed, slower, halved, back = rows
    return [
        _percent(min(good)),
        f"{max(p99):,.2f} s",
        _percent(min(cold)),
        _percent(min(scattered)),
        f"{max(shed):,}",
        f"{max(slower):.0%}",
        _percent(min(halved)),
        _percent(min(back)),
    ]


def _measure(make: Callable[[], Any], seed: int) -> tuple[float, ...]:
    rising = steps(make(), constant(0.1), loads=(0.5, 1, 1.5, 3, 10), seed=seed)
    cold = steps(make(), constant(0.1), loads=(10,), seed=seed)
    scattered = steps(make(), exponential(0.1), loads=(0.5, 1, 1.5, 3, 10), seed=seed)
    slower = change(make(), rate=50, places=math.inf, at=20, slowness=3, seed=seed).answers
    halved = change(make(), rate=90, places=10, at=20, places_then=5, back_at=40, seed=seed).answers
    return (
        min(share for share, _ in rising),
        max(p99 for _, p99 in rising),
        cold[0][0],
        min(share for share, _ in scattered),
        sum(burst(make())) if seed == SEEDS[0] else 0,
        share_shed(slower, 20, 60),
        goodput(halved, 22, 40) / 50,
        goodput(halved, 42, 60) / 90,
    )


def _percent(share: float) -> str:
    return f"{min(1.0, share):.0%}"  # what queued in one step is answered in the next


if __name__ == "__main__":
    print(table(HEADER, [[name, *measure(make)] for name, make in CANDIDATES.items()]))
