"""How many requests of one route may run at once: the pure policy. The time is always an argument.

It is composed of what others found for networks and services; docs/overload.md has the measurements by which
it was chosen, bench/limits the candidates that lost.

* Little's law (J. D. C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9, 1961): what
  can be worked on at once is throughput times the latency without a queue. When evidence of overload comes,
  the limit falls to that in one step, as BBR drains the queue it found (Cardwell et al., "BBR:
  Congestion-Based Congestion Control", ACM Queue 14, 2016).
* From there it follows the gradient of Netflix's concurrency-limits (``Gradient2Limit.java``) with the square
  root as headroom of Envoy's adaptive concurrency filter (``gradient_controller.cc``): limit · baseline /
  latency, and a small queue more, without which a capacity that grows would never be noticed.
* A trial lowers the limit now and then, as BBR's ProbeRTT and Envoy's minRTT window do. Where latency does
  not fall with it, concurrency is not its cause: the baseline rises and nothing more is shed.
* A priority is a tolerance for queueing, as in LEDBAT (RFC 6817): who tolerates less yields first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from freeloop.gate.baseline import Baseline, Window

Priority = Literal["low", "normal", "high"]

_FLOOR: Final = 0.050  # s; below, latency is the jitter of a busy loop, and nobody waits noticeably longer
_FEWEST, _FIRST, _MOST = 4, 10, 1000  # samples: of a window, of a baseline, that decide however they scatter
_SHORTEST: Final = 0.05  # s of a window
_CERTAIN: Final = 4.0  # standard errors above the baseline, before a limit is set
_CAUSAL: Final = 0.85  # of the latency before: above it, a reduction to 3/4 or less had no effect
_TRIAL: Final = 0.7  # of the limit, for the time of a trial
_TRIAL_EVERY: Final = 10.0  # s, or 30 times as long as a trial takes: costs at most one percent of throughput
_USUAL: Final = 3.0  # s over which the usual throughput is taken


@dataclass(frozen=True, slots=True)
class _Tolerance:
    """What a priority bears: when a limit is set, the queue behind the limit and the one at the gate."""

    engage: float  # latency as a multiple of the baseline
    headroom: float  # of the limit
    wait: float  # of the baseline
    belief: float  # how much of a latency that did not fall goes into the baseline at once


_TOLERANCES: Final = {
    "low": _Tolerance(1.3, 0.08, 0.2, 0.3),
    "normal": _Tolerance(1.4, 0.2, 0.4, 1.0),
    "high": _Tolerance(2.5, 0.5, 1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class _Trial:
    """A lower limit that has to prove itself.

    Attributes:
        drains: It follows a queue that grew: the limit is what fits without a queue.
        before: The latency to better, in seconds.
        rate: Requests a second that ended before.
        restore: The limit afterwards; 0.0: the trial's own.
        started: When, on the monotonic clock.
        until: When it is judged, however little is known.
    """

    drains: bool
    before: float
    rate: float
    restore: float
    started: float
    until: float


class AdaptiveLimit:
    """The limit of one route. There is none until latency is evidence of overload.

    Args:
        priority: The tolerance for queueing: "low", "normal" or "high".

    Attributes:
        limit: Requests that may run at once; None: any number.
        needed: Samples that the next window needs.
        span: Seconds that the next window lasts at least.
        wait: Seconds that a request may wait for its turn.
        queue: Requests that may wait at once.
        quiet: Seconds after which a limit that nobody reached is lifted.
    """

    def __init__(self, *, priority: Priority = "normal") -> None:
        self._tolerance = _TOLERANCES[priority]
        self.limit: int | None = None
        self.needed = _FIRST
        self.span = _SHORTEST
        self.wait = 0.0
        self.queue = 1
        self.quiet = 5.0
        self._baseline: Baseline | None = None
        self._value = 0.0
        self._rate = 0.0  # requests a second that ended lately, without a limit
        self._strikes = 0
        self._trial: _Trial | None = None
        self._trial_at = 0.0
        self._ramping = False  # after a queue was drained: the limit grows fast up to what was seen to work
        self._reach = 0.0  # requests a second that ended while the queue was drained
        self._highest = (0.0, 0.0)  # a limit and its latency, which a lower limit has to better
        self._lowest = (math.inf, 0.0, 0)  # a limit, its latency and samples, which a higher may not worsen

    @property
    def baseline(self) -> float | None:
        """The mean latency without a queue, in seconds; None: not known yet."""
        return self._baseline.mean if self._baseline else None

    def decide(self, window: Window) -> bool:
        """Judge a window; return False where it has to go on, since it says nothing certain yet."""
        baseline = self._baseline
        if baseline is None:
            baseline = self._baseline = Baseline(window)
        elif not (self._watch if self.limit is None else self._judge if self._trial else self._steer)(
            window, baseline
        ):
            self.needed = window.count + max(_FIRST, window.count // 2)
            return False
        reference = max(baseline.mean, _FLOOR)
        self.span = max(_SHORTEST, reference / 2)
        self.wait = min(1.0, self._tolerance.wait * reference)
        self.quiet = max(5.0, 10 * reference)
        if self.limit is None:
            self.needed = max(_FEWEST, min(_FIRST, math.ceil(100 * baseline.variance / reference**2)))
        else:
            self.needed = max(_FIRST, min(self.limit, _MOST))
            in_time = round(self.limit * self.wait / window.mean)  # Little's law again
            self.queue = max(1, min(in_time, 4 * math.ceil(math.sqrt(self.limit))))
        return True

    def release(self) -> None:
        """Lift the limit."""
        self.limit = self._trial = None
        self._strikes = 0

    def _watch(self, window: Window, baseline: Baseline) -> bool:
        """Look for evidence of overload; otherwise learn the baseline."""
        reference = max(baseline.mean, _FLOOR)
        engage, rate, usual = self._tolerance.engage, window.rate, self._rate
        self._rate += (1 - math.exp(-window.span / _USUAL)) * (rate - usual)
        excess = window.running - rate * window.mean  # a standing load has none, by Little's law
        growing = excess > 3 * math.sqrt(window.running)
        recedes = window.growth <= -window.count / 2  # a burst that is being worked off
        high = window.mean > reference * engage and (growing or not baseline.is_provisional())
        # Otherwise a few dear requests among cheap ones: as many run as always.
        if not high or recedes or window.running < max(2.0, rate * reference * engage):
            self._strikes = 0
            if not (high and recedes):
                baseline.learn(window)
            return True
        # A queue many times as long as what is worked on says the same again.
        certain = _CERTAIN / 2 if growing and window.running > 4 * rate * window.mean else _CERTAIN
        if window.mean - baseline.mean < certain * baseline.error(window):
            if window.count < _MOST:
                return False
            baseline.learn(window)
            return True
        self._strikes += 1
        if not growing and self._strikes < 2:
            return True
        # A queue that grows is overload. One that stands may be, or the upstream got slower: that is tried
        # with a smaller step.
        fits = max(rate, usual) * reference
        self._set(fits if growing else max(fits, 0.6 * window.running))
        patience = 1.0 + 5 * window.mean + (window.running / rate if growing else 0.0)
        self._trial = _Trial(growing, window.mean, rate, 0.0, window.now, window.now + patience)
        self._trial_at = window.now + _TRIAL_EVERY
        return True

    def _judge(self, window: Window, baseline: Baseline) -> bool:
        """End a trial: did a lower limit lower the latency?"""
        trial = self._trial
        assert trial is not None  # noqa: S101 - for the type checker: decide() asks
        certain = window.count >= min(_MOST, (20 if trial.drains else 150) * baseline.scatter(window))
        # The short ones of the first to be admitted end first.
        certain = certain and window.fresh >= 1.5 * (window.mean + 2 * math.sqrt(window.variance))
        if not certain and window.now < trial.until:
            if trial.drains:
                self._set(max(self._value, window.drained_rate * baseline.mean))
            return False
        self._trial = None
        tried = self._value
        before = trial.before
        if trial.drains:
            before = max(before, window.earlier_mean)
        elif not trial.restore:
            before = max(before, min(window.earlier_mean, tried / 0.6 / trial.rate))
        caused = window.mean <= _CAUSAL * before
        self._highest = (tried, before)
        self._lowest = (tried, window.mean, window.count)
        if trial.restore:
            self._end_trial(window, baseline, trial, certain=certain, caused=caused)
        elif not caused or not (certain or trial.drains):
            baseline.believe(window, self._tolerance.belief)
            self._ramping = True
            if window.mean <= baseline.mean * self._tolerance.engage:
                self.release()
        elif trial.drains:
            self._end_drain(window, baseline, trial)
        elif window.mean < baseline.mean:
            baseline.believe(window, self._tolerance.belief)
        return True

    def _end_trial(
        self, window: Window, baseline: Baseline, trial: _Trial, *, certain: bool, caused: bool
    ) -> None:
        known = baseline.mean
        self._ramping = False
        if window.mean < known or (certain and not caused):
            baseline.believe(window, self._tolerance.belief)
        if certain and caused and window.mean < 0.95 * known:
            self._try(window)  # the baseline had a queue in it; there may be more
            return
        self._set(trial.restore)
        self._highest = (trial.restore, trial.before)
        self._trial_at = window.now + max(_TRIAL_EVERY, 30 * (window.now - trial.started))

    def _end_drain(self, window: Window, baseline: Baseline, trial: _Trial) -> None:
        self._ramping = True
        self._reach = window.drained_rate
        unreached = self._value / window.mean < 0.9 * self._reach
        if unreached or window.mean < baseline.mean or baseline.is_provisional():
            # Nothing queued under what fits: this is a baseline, and more certain than the one before.
            baseline.believe(window, self._tolerance.belief)
        self._set(max(self._value, (self._reach or trial.rate) * window.mean))
        self._highest = (self._value, self._highest[1])
        self._trial_at = window.now + max(2.0, 10 * window.mean)

    def _steer(self, window: Window, baseline: Baseline) -> bool:
        """Move the limit along the gradient, and have each large change prove itself."""
        scatter = baseline.scatter(window)
        headroom = max(0.5, min(self._tolerance.headroom * self._value, 2 * math.sqrt(self._value)))
        expected = max(baseline.mean, _FLOOR) * self._value / (self._value - headroom)
        if (
            window.count < min(_MOST, (20 if self._ramping else 50) * scatter)
            and abs(window.mean / expected - 1) < 3 * math.sqrt(scatter / window.count)
            and window.span < max(2.0, 20 * window.mean)
        ):
            return False
        unreached = max(self._value / window.mean, window.rate) < 0.75 * self._reach and window.pressed
        if (self._value < 3 and window.mean > baseline.mean) or (baseline.is_provisional() and unreached):
            # Next to nothing queues behind so low a limit: this is the baseline.
            baseline.believe(window, self._tolerance.belief)
        limit, latency = self._highest
        if self._value <= 0.75 * limit:
            if window.count < min(_MOST, 150 * scatter):
                return False
            if window.mean > _CAUSAL * latency:  # it fell, and the latency did not
                baseline.believe(window, self._tolerance.belief)
                self._set(limit)
            self._highest = (self._value, window.mean)
            return True
        if window.pressed:
            self._highest = (max(limit, self._value), max(latency, window.mean))
            if self._only_queues(window, baseline, scatter):
                return True
            if window.now >= self._trial_at and self._value >= 3 and not self._ramping:
                self._try(window)
                return True
        self._move(window, baseline, headroom)
        return True

    def _only_queues(self, window: Window, baseline: Baseline, scatter: float) -> bool:
        """Take an increase back after which nothing grew but the latency."""
        low, latency, count = self._lowest
        if low < self._value < 1.5 * low:
            return False
        error = window.mean * math.sqrt(scatter / max(1, count) + scatter / window.count)
        if self._value > low and window.mean > 1.25 * latency + 2 * error:
            baseline.mean = min(baseline.mean, latency)
            self._ramping = False
            self._set(low)
            return True
        self._lowest = (self._value, window.mean, window.count)
        return False

    def _move(self, window: Window, baseline: Baseline, headroom: float) -> None:
        target = self._value * max(0.5, min(1.0, max(baseline.mean, _FLOOR) / window.mean)) + headroom
        if self._ramping:
            reach = self._reach * window.mean
            if reach > 1.15 * self._value and window.rate < 0.9 * self._reach:
                # Fewer end than were seen to: nothing queues yet.
                baseline.believe(window, self._tolerance.belief)
                target = min(3 * self._value, 2 * reach - self._value)
            elif window.mean <= baseline.mean * (1 + headroom / self._value / 2):
                target = 2 * self._value
            else:
                self._ramping = False
        if target < self._value or window.pressed:
            self._set((self._value + target) / 2)

    def _try(self, window: Window) -> None:
        until = window.now + 1.0 + 3 * window.mean
        self._trial = _Trial(False, window.mean, window.rate, self._value, window.now, until)
        self._set(_TRIAL * self._value)

    def _set(self, value: float) -> None:
        self._value = max(1.0, value)
        self.limit = int(self._value)
