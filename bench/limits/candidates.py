"""The candidates that lost, in front of the same :class:`Admission`, so that only the policy differs.

Each is written from its source, with its source's defaults except where those would decide the comparison: a
least limit of 1 instead of Netflix's 20, and a window of a few latencies instead of a second.
"""

from __future__ import annotations

import math

from freeloop.gate.admission import Admission, Verdict
from freeloop.gate.baseline import Window


class Policy:
    """What all share: the baseline is the least latency of a window, the queue at the gate is as ours."""

    initial = 20
    most = 1_000.0  # as in Vegas and in Envoy; AIMD and Gradient2 have 200

    def __init__(self) -> None:
        self.value = float(self.initial)
        self.baseline: float | None = None
        self.needed, self.span, self.wait, self.queue, self.quiet = 10, 0.05, 0.0, 1, math.inf

    @property
    def limit(self) -> int:
        return int(self.value)

    def release(self) -> None:
        """A limit from the start is never lifted."""

    def decide(self, window: Window) -> bool:
        self.baseline = min(self.baseline or math.inf, window.mean)
        self.value = max(1.0, min(self.most, self.update(window)))
        self.span, self.wait = max(0.05, self.baseline / 2), min(1.0, 0.45 * self.baseline)
        in_time = round(self.value * self.wait / window.mean)
        self.queue = max(1, min(in_time, 4 * math.ceil(math.sqrt(self.value))))
        return True

    def is_used(self, window: Window) -> bool:
        return window.pressed or window.running * 2 >= self.value

    def update(self, window: Window) -> float:
        raise NotImplementedError


class Unlimited(Policy):
    """What happens without a gate."""

    initial = 20_000
    most = 20_000.0

    def update(self, window: Window) -> float:
        return self.value


class Fixed(Policy):
    """The limit that somebody set who knew the resource of ten places, and who is there when it changes."""

    initial = 13

    def update(self, window: Window) -> float:
        return self.value


class Aimd(Policy):
    """Additive increase, multiplicative decrease: Netflix concurrency-limits, ``AIMDLimit.java``.

    Its time-out, 5 s for every service, is 1.5 times the least latency here: else it would not act at all.
    """

    def update(self, window: Window) -> float:
        if window.mean > 1.5 * (self.baseline or window.mean):
            return self.value * 0.9
        return self.value + 1 if self.is_used(window) else self.value


class Vegas(Policy):
    """TCP Vegas (Brakmo, Peterson 1995): Netflix concurrency-limits, ``VegasLimit.java``."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def update(self, window: Window) -> float:
        self.windows += 1
        if self.windows % 30 == 0:
            self.baseline = window.mean  # its probe: whatever is measured now is the new least latency
            return self.value
        if not self.is_used(window):
            return self.value
        queued = math.ceil(self.value * (1 - (self.baseline or window.mean) / window.mean))
        step = max(1.0, math.log10(self.value))
        if queued <= step:
            return self.value + 6 * step
        if queued < 3 * step:
            return self.value + step
        return self.value - step if queued > 6 * step else self.value


class Gradient2(Policy):
    """Netflix concurrency-limits, ``Gradient2Limit.java``: the latency against its own long average."""

    def __init__(self) -> None:
        super().__init__()
        self.long = 0.0

    def update(self, window: Window) -> float:
        self.long = self.long + (window.mean - self.long) * 2 / 601 if self.long else window.mean
        if self.long > 2 * window.mean:
            self.long *= 0.95
        if window.running < self.value / 2 and not window.pressed:
            return self.value
        gradient = max(0.5, min(1.0, 1.5 * self.long / window.mean))
        return self.value * 0.8 + (self.value * gradient + 4) * 0.2


class Envoy(Policy):
    """Envoy, ``gradient_controller.cc``: every 60 s three requests at a time measure the baseline.

    With means, as for all others, where Envoy takes a percentile.
    """

    initial = 3

    def __init__(self) -> None:
        super().__init__()
        self.needed = 50
        self.minimum = 0.0
        self.measure_at = 0.0
        self.deferred = 3.0

    def update(self, window: Window) -> float:
        if not self.measure_at:
            self.minimum, self.measure_at, self.needed = window.mean, window.now + 60, 10
            return self.deferred
        if window.now >= self.measure_at:
            self.deferred, self.measure_at, self.needed = self.value, 0.0, 50
            return 3.0
        gradient = max(0.5, min(2.0, 1.25 * self.minimum / window.mean))
        limit = self.value * gradient
        return limit + math.sqrt(limit)


class CoDel:
    """Controlled delay (Nichols, Jacobson: "Controlling Queue Delay", ACM Queue 10, 2012; RFC 8289).

    An async service has no queue of its own to take from, so it drops where requests arrive, as long as the
    least delay of an interval is above the target. Delay is latency above the least latency ever seen;
    interval and target follow the latency: RFC 8289 takes one round trip, and 5 to 10 % of it.
    """

    waiting = 0
    wait_limit = 0.0
    limit = None

    def __init__(self) -> None:
        self.running = self.shed = 0
        self.least = math.inf
        self.below_until = math.inf
        self.dropping, self.count, self.next_drop = False, 0, 0.0

    def arrive(self, now: float) -> Verdict:
        if not self.running:  # an empty queue ends it
            self.dropping, self.below_until = False, math.inf
        if self.dropping and now >= self.next_drop:
            self.count += 1
            self.next_drop = now + self.least / math.sqrt(self.count)
            self.shed += 1
            return Verdict.SHED
        self.running += 1
        return Verdict.ADMIT

    def leave(self, now: float, latency: float | None) -> int:
        self.running -= 1
        if latency is None:
            return 0
        self.least = min(self.least, latency)
        if latency < 1.1 * self.least:
            self.dropping, self.below_until = False, math.inf
        elif self.below_until == math.inf:
            self.below_until = now + self.least
        elif now >= self.below_until and not self.dropping:
            self.dropping, self.next_drop = True, now
            self.count = self.count - 2 if self.count > 2 else 1
        return 0


class Counting(Admission):
    """Ours, but as in the sources every request counts, also one admitted before the limit changed."""

    __slots__ = ()

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)  # type: ignore[arg-type]
        self._limit = self._room = policy.limit  # ours begins without one

    def _decide(self, now: float) -> None:
        super()._decide(now)
        self._since = -math.inf
