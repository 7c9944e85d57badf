"""Whether the loop was blocked, for how long, and what for. Pure: what was seen comes in, a verdict goes out.

A late heartbeat says that the loop did not come round. It says neither that somebody's code held it up (the
host may have stopped the process, or given its CPU to others), nor what that code did. The clocks do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from freeloop.watch.sample import Sample
from freeloop.watch.starvation import (
    Starvation,
    adopt_routes,
    find_longest_step,
    find_starvation,
    length,
    span,
)

Cause: TypeAlias = Literal["waiting", "computing", "gil", "thread"]
"""What the loop was held up by: code that waited off the CPU; that computed; that computed in C without
letting go of the GIL; another thread that did so."""

# The share of a block that makes it one of a class.
_HELD: Final = 0.5
_CERTAIN: Final = (
    0.1  # of the time that was surely computed while the GIL was held: what is not sure is left out
)
_COMPUTES: Final = 1 / 3
_LEAST: Final = 0.1  # of the time, on however busy a machine
_STRAY: Final = 0.2  # of a block that may have gone to what ran just before and behind it
_STALLED: Final = 0.5  # of a time in which a process advances less, its host has stopped it


@dataclass(frozen=True, slots=True)
class Starved:
    """A time in which the watchdog's own thread did not get to run.

    Attributes:
        start: When it was to run, in seconds of :func:`time.monotonic`.
        end: When it did.
        advanced: For how many seconds the process used a CPU meanwhile, or waited for one.
        ran: Whether the process ran: then somebody held the GIL.
        loop: For how many seconds the loop's thread surely used a CPU and held the GIL meanwhile.
        others: The same of other threads, by ident.
    """

    start: float
    end: float
    advanced: float
    ran: bool
    loop: float = 0.0
    others: Mapping[int, float] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether nobody advanced."""
        return self.advanced < _STALLED * (self.end - self.start)

    @property
    def stalled(self) -> bool:
        """Whether the process itself did not run."""
        return self.idle and not self.ran


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen between two heartbeats, or since the last one.

    Attributes:
        start: The last heartbeat, in seconds of :func:`time.monotonic`.
        end: The next one, or now.
        tick: Seconds after which the next one was due: the block began in that time.
        loop: CPU time of the loop's thread between both, in seconds.
        delayed: How long that thread was ready to run and had no CPU.
        waited: How long the watchdog's thread was ready to run and had no CPU, from before the start on: it
            may have held the GIL then, and the loop's thread have waited for that.
        samples: What it ran.
        starved: When the watchdog did not get to run.
    """

    start: float
    end: float
    tick: float
    loop: float
    delayed: float = 0.0
    waited: float = 0.0
    samples: Sequence[Sample] = ()
    starved: Sequence[Starved] = ()

    @property
    def begun(self) -> float:
        """When somebody's code began to hold it up, about.

        That was between the last heartbeat and the one that was due. A request that has begun since then
        narrows it down: the loop was free before it.
        """
        blamed = self.samples[0].blamed if self.samples else None
        if blamed is not None and self.start < blamed.started < self.end:
            return min(blamed.started, self.start + self.tick)
        return self.start + self.tick / 2

    @property
    def computed(self) -> bool:
        """Whether it used the CPU, of the time in which neither a CPU nor the GIL was surely missing."""
        wall = self.end - self.begun - self.stalled - self.delayed
        return self.loop >= max(_COMPUTES * (wall - self.waited), _LEAST * wall)

    def overlap(self, starved: Starved) -> float:
        """Return how much of that lies between both, in seconds."""
        return max(0.0, min(self.end, starved.end) - max(self.start, starved.start))

    @property
    def stalled(self) -> float:
        """Seconds in which the process did not run."""
        return sum(self.overlap(each) for each in self.starved if each.stalled)

    @property
    def withheld(self) -> float:
        """Seconds in which the host let the loop's thread have no CPU."""
        return min(self.stalled + self.delayed, self.end - self.start)

    @property
    def held(self) -> float:
        """Seconds in which the GIL was held."""
        return sum(self.overlap(each) for each in self.starved if not each.stalled)


@dataclass(frozen=True, slots=True)
class Block:
    """What held the loop up.

    Attributes:
        seconds: For how long.
        cause: What for.
        samples: What was seen of it; empty where another thread held it up.
        thread: The ident of that thread.
        starvation: Where it was many short steps.
    """

    seconds: float
    cause: Cause
    samples: Sequence[Sample]
    thread: int | None = None
    starvation: Starvation | None = None

    @property
    def worst(self) -> Sample | None:
        """The sample of the line that took most time.

        Of several it is the last that tells what was called: a line that has just got its answer goes on.
        """
        times: dict[object, float] = {}
        for sample in self.samples:
            times[sample.place] = times.get(sample.place, 0.0) + sample.seconds
        place = max(times, key=lambda each: times[each], default=None)
        those = [sample for sample in reversed(self.samples) if sample.place == place]
        return next((sample for sample in those if sample.calls), those[0] if those else None)


def judge(evidence: Evidence, threshold: float) -> Block | None:
    """Return what blocked the loop for longer than the threshold, in seconds; None: nothing did."""
    seconds = _measure(evidence)
    if seconds < threshold:
        return None
    cause, thread = _classify(evidence, seconds)
    if cause == "thread":
        return Block(seconds, cause, (), thread)
    if not evidence.samples:
        return None  # nobody knows what it was: a finding without a line would help nobody
    evidence = replace(evidence, samples=adopt_routes(evidence.samples))
    step = find_longest_step(evidence.samples)
    # Of several steps, one alone may be long enough.
    others = span(evidence.samples) - span(step)
    alone = seconds - others if others <= _STRAY * seconds else min(seconds, length(step))
    if alone >= threshold:
        return Block(alone, cause, step)
    starvation = find_starvation(evidence.samples)
    if starvation is not None:
        return Block(min(seconds, span(starvation.samples)), cause, starvation.samples, None, starvation)
    return None


def _measure(evidence: Evidence) -> float:
    """Return for how long somebody's code held the loop up.

    CPU time is certain, and of code that computes where the host lets it wait the only thing that is. Neither
    a stopped process nor one that has to wait for a CPU is anybody's fault; but what it waited for before
    that code began is not taken off what the code took.
    """
    hindered = evidence.delayed + evidence.waited + evidence.stalled
    if evidence.computed and hindered > _STRAY * (evidence.end - evidence.begun):
        return evidence.loop
    if evidence.stalled:
        ran = max(evidence.loop, span(evidence.samples) - evidence.stalled)
        return min(ran, evidence.end - evidence.start - evidence.stalled)
    wall = evidence.end - evidence.begun
    if evidence.computed:
        lost = evidence.delayed + evidence.waited
    else:
        lost = max(0.0, evidence.delayed - (evidence.begun - evidence.start))
    return max(evidence.loop, wall - lost)


def _classify(evidence: Evidence, seconds: float) -> tuple[Cause, int | None]:
    """Return the class, and of ``thread`` its ident.

    That the watchdog did not get to run is no proof that the GIL was held: on a crowded machine whoever has
    it may wait for a CPU. What a thread computed in that time, beyond its turn, is.
    """
    starved = [each for each in evidence.starved if evidence.overlap(each)]
    if evidence.computed:
        held = sum(each.loop for each in starved)
        return ("gil" if held >= _CERTAIN * evidence.loop else "computing"), None
    others: dict[int, float] = defaultdict(float)
    starved = [each for each in starved if not each.stalled]
    for each in starved:
        for ident, used in each.others.items():
            others[ident] += used
    held = evidence.held
    if held >= _HELD * seconds and others and max(others.values()) >= _CERTAIN * held:
        return "thread", max(others, key=lambda ident: others[ident])
    if sum(evidence.overlap(each) for each in starved if each.idle) >= _HELD * seconds:
        return "gil", None  # by code in C that waits
    return "waiting", None
