"""Many short steps in a row that keep the loop as busy as one long one. Pure.

Each step of 10 ms harms nobody, forty of them in a row do. A crowd of ordinary requests is no finding:
that is load, and the gate's business. What tells them apart is how long a step is, and whether one place of
one route makes up most of the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from freeloop.watch.blame import Blamed
from freeloop.watch.sample import Sample

_SHARE: Final = 0.5  # of the time that one function of one route has to make up
_SHORTEST: Final = 0.005  # seconds; what is shorter is an ordinary step
_FEWEST: Final = 4  # samples of it
_FEWEST_PAIRS: Final = 0.15  # of two samples in a row that are of one step; less may be chance


class Starvation(NamedTuple):
    """One place whose steps follow each other.

    Attributes:
        samples: What was seen of it.
        steps: How many steps were seen at least.
        seconds: How long one takes, about.
    """

    samples: Sequence[Sample]
    steps: int
    seconds: float


def find_longest_step(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples of the one step that took most time; in a single block, that is all of them."""
    best: list[Sample] = []
    current: list[Sample] = []
    for sample in samples:
        if current and sample.step != current[-1].step:
            current = []
        current.append(sample)
        if length(current) > length(best):
            best = list(current)
    return best


def adopt_routes(samples: Sequence[Sample]) -> list[Sample]:
    """Give a sample of which only the line was seen the route of all others of that line, where it is one."""
    routes: dict[object, set[tuple[str, str]]] = defaultdict(set)
    for sample in samples:
        if sample.blamed is not None:
            routes[sample.place].add((sample.blamed.route, sample.blamed.kind))
    adopted = []
    for sample in samples:
        found = routes[sample.place]
        if sample.blamed is None and len(found) == 1:
            ((route, kind),) = found
            adopted.append(sample._replace(blamed=Blamed(route, kind=kind)))
        else:
            adopted.append(sample)
    return adopted


def length(step: Sequence[Sample]) -> float:
    """Return for how long a step was seen at least: of the time before it was, others may have had a part."""
    return step[-1].at - step[0].at + min(step[0].seconds, _SHORTEST) if step else 0.0


def span(samples: Sequence[Sample]) -> float:
    """Return the time that samples stand for."""
    return sum(sample.seconds for sample in samples)


def find_starvation(samples: Sequence[Sample]) -> Starvation | None:
    """Return the place whose steps take most of the time; None: no single one does."""
    groups: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.place is not None:
            route = "" if sample.blamed is None else sample.blamed.route
            groups[sample.place.file, sample.place.function, route].append(sample)
    if not groups:
        return None
    most = max(groups.values(), key=span)
    if len(most) < _FEWEST or span(most) < _SHARE * span(samples):
        return None
    seconds = _estimate_step(samples)
    steps = len({sample.step for sample in most})
    return Starvation(most, steps, seconds) if steps > 1 and seconds >= _SHORTEST else None


def _estimate_step(samples: Sequence[Sample]) -> float:
    """Estimate how long a step takes from how often two samples in a row are of the same one.

    Of samples a time g apart, two are of one step of length s with a chance of 1 - g/s. Where no two ever
    are, steps may have any length below g, and count as short. Of steps that compute it is CPU time: a step
    is not long because others had the CPU meanwhile.
    """
    pairs = list(pairwise(samples))
    wall = sum(after.at - before.at for before, after in pairs)
    computed = sum(after.cpu - before.cpu for before, after in pairs)
    changes = sum(before.step != after.step for before, after in pairs)
    same = len(pairs) - changes
    if not changes or same < max(2, _FEWEST_PAIRS * len(pairs)):
        return 0.0
    return (computed if computed >= wall / 3 else wall) / changes
