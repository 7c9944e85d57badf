"""Who of one route may run, who waits for a turn and who is shed: a state machine without I/O or clock."""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

from freeloop.gate.baseline import Window
from freeloop.gate.limit import AdaptiveLimit

_LONGEST_RETRY: Final = 30  # s
_QUICK: Final = 0.002  # s
_INSTANT: Final = 1e-6  # s, below any clock that matters here


class Verdict(Enum):
    """What becomes of a request that arrives."""

    ADMIT = "admit"
    WAIT = "wait"
    SHED = "shed"


class Admission:
    """The admission of one route.

    Whoever holds it calls :meth:`arrive` for each request; then :meth:`leave` when an admitted one ends, and
    :meth:`promote` or :meth:`abandon` once for each one that was told to wait. The ones that wait come first
    in, first out: taking the newest first instead answered no more of them in time (docs/overload.md).

    Args:
        limit: Decides the limit; its own, not shared.
        ceiling: Requests that run at once at most, also where there is no limit.

    Attributes:
        running: Requests that were admitted and have not ended.
        waiting: Requests that wait for their turn.
        shed: Requests that were told to go since the start.
    """

    __slots__ = (
        "_ceiling",
        "_count",
        "_drained",
        "_drained_at",
        "_due",
        "_earlier_count",
        "_earlier_seen",
        "_earlier_sum",
        "_lift_at",
        "_limit",
        "_needed",
        "_over",
        "_policy",
        "_pressed",
        "_room",
        "_shed_before",
        "_since",
        "_squares",
        "_started",
        "_started_running",
        "_sum",
        "running",
        "shed",
        "waiting",
    )

    def __init__(self, limit: AdaptiveLimit, *, ceiling: int = 20_000) -> None:
        self._policy = limit
        self._ceiling = ceiling
        self.running = self.waiting = self.shed = 0
        self._limit = ceiling  # what runs at once at most
        self._room = ceiling  # as above, with those who wait
        self._over = 1.0
        self._lift_at = math.inf
        self._pressed = False
        self._since = -math.inf  # when the limit changed: whoever was admitted before says nothing about it
        self._earlier_sum = 0.0
        self._earlier_count = 0
        self._earlier_seen = 0
        self._drained = 0
        self._drained_at = -math.inf
        self._started = 0.0
        self._started_running = 0
        self._shed_before = 0
        self._needed = limit.needed
        self._due = -math.inf
        self._count = 0
        self._sum = self._squares = 0.0

    @property
    def limit(self) -> int | None:
        """Requests that may run at once; None: as many as the ceiling allows."""
        return self._policy.limit

    @property
    def baseline(self) -> float | None:
        """The mean latency without a queue, in seconds; None: not known yet.

        A request that was cut or abandoned is evidence only when it was slower than this already.
        """
        return self._policy.baseline

    @property
    def wait_limit(self) -> float:
        """Seconds that a request may wait for its turn, at most 1."""
        return self._policy.wait

    @property
    def retry_after(self) -> int:
        """Seconds after which a request that was shed may come again, 1 to 30.

        As many latencies as the load is over the limit: ten times the load comes back over ten of them.
        """
        ended = max(1, self._count + self._earlier_count)
        over = max(self._over, self.running / self._limit, (self.shed - self._shed_before) / ended)
        return max(1, min(_LONGEST_RETRY, math.ceil(over * max(1.0, self._policy.baseline or 0.0))))

    def arrive(self, now: float) -> Verdict:
        """Decide about a request that arrives.

        Args:
            now: Seconds on the monotonic clock that is used for all calls.
        """
        if now >= self._lift_at:
            self._lift()
        if self.running < self._limit and not self.waiting:
            self.running += 1
            return Verdict.ADMIT
        return self._hold(now)

    def leave(self, now: float, latency: float | None) -> int:
        """End an admitted request; return how many that wait may now be promoted.

        Args:
            now: Seconds on the clock of :meth:`arrive`.
            latency: Seconds since it was admitted or promoted; None where it says nothing about the load: it
                failed fast, or was cut before it was slow.
        """
        self.running -= 1
        if latency is not None:
            if now - latency >= self._since:
                self._count += 1
                self._sum += latency
                self._squares += latency * latency
                if self._count >= self._needed and (now >= self._due or self._pauses()):
                    self._decide(now)
            else:
                self._earlier_sum += latency
                self._earlier_count += 1
                if self.running >= self._limit:
                    self._drained += 1
                    self._drained_at = now
        if self.waiting:
            return max(0, min(self.waiting, self._limit - self.running))
        return 0

    def promote(self) -> None:
        """Admit one that waits."""
        self.waiting -= 1
        self.running += 1

    def abandon(self) -> None:
        """Forget one that waits: its time is over, or its client has gone."""
        self.waiting -= 1

    def _hold(self, now: float) -> Verdict:
        """Let a request wait where its turn will come in time, and shed it otherwise."""
        limited = self._policy.limit is not None
        if self.running < self._limit and not (limited and self.running):
            # Who waits was called already, or nobody is left to call them.
            self.running += 1
            return Verdict.ADMIT
        self._pressed = True
        if limited:
            self._lift_at = now + self._policy.quiet
            if self.running + self.waiting < self._room:
                self.waiting += 1
                return Verdict.WAIT
        self.shed += 1
        return Verdict.SHED

    def _pauses(self) -> bool:
        """Whether nothing runs any more: what comes after a pause is another story.

        Quick requests run one by one in a loop, so between any two of them nothing runs.
        """
        return not self.running and self._sum >= _QUICK * self._count

    def _decide(self, now: float) -> None:
        policy, count = self._policy, self._count
        mean = max(self._sum / count, _INSTANT)
        span = max(now - self._started, _INSTANT)
        drained = self._drained_at - self._since
        window = Window(
            now=now,
            span=span,
            rate=(count + self._earlier_count - self._earlier_seen) / span,
            count=count,
            mean=mean,
            variance=max(0.0, self._squares / count - mean * mean),
            earlier_mean=self._earlier_sum / self._earlier_count if self._earlier_count else 0.0,
            drained_rate=self._drained / drained if drained > (policy.baseline or 0.0) else 0.0,
            fresh=max(0.0, now - max(self._since, self._drained_at)),
            running=self.running,
            growth=self.running - self._started_running,
            pressed=self._pressed,
        )
        before = policy.limit
        decided = policy.decide(window)
        self._needed = policy.needed
        limit = policy.limit
        if not decided:
            if limit is not None:
                self._take_over(limit)
            return
        if limit is None:
            if before is not None:
                self._lift()
        else:
            self._over = 1 + (self.shed - self._shed_before) / (count + self._earlier_count)
            if before is None:
                self._lift_at = now + policy.quiet
            if limit != before:
                self._since = now + _INSTANT  # whoever came in this very moment came before it
                self._earlier_sum = 0.0
                self._earlier_count = self._drained = 0
                self._drained_at = -math.inf
            self._take_over(limit)
        self._begin(now)

    def _take_over(self, limit: int) -> None:
        self._limit = min(limit, self._ceiling)
        self._room = self._limit + self._policy.queue

    def _lift(self) -> None:
        self._policy.release()
        self._limit = self._room = self._ceiling
        self._lift_at = math.inf
        self._since = -math.inf
        self._over = 1.0

    def _begin(self, now: float) -> None:
        self._started = now
        self._started_running = self.running
        self._due = now + self._policy.span
        self._shed_before = self.shed
        self._pressed = False
        self._earlier_seen = self._earlier_count
        self._count = 0
        self._sum = self._squares = 0.0
