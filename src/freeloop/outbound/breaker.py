"""Stop calling an upstream that fails: its callers get their answer at once, and it gets time to recover.

The three states of M. Nygard's "Release It!" with the rates over a sliding window of resilience4j
(``CircuitBreakerStateMachine.java``) and Polly, and three points where breakers are known to go wrong:

* Half open lets exactly one probe through; Polly and sony/gobreaker do, resilience4j lets ten.
* A probe that is cancelled says nothing, and the next call is the probe. In monix (issue 1080) and
  several others the breaker stayed half open for ever.
* What began before the state changed says nothing about the state that is: sony/gobreaker's generations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, Literal

from freeloop.errors import (
    OutboundError,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound.response import Response
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.outbound.window import Window

State = Literal["closed", "open", "half-open"]

_CALLS: Final = 0
_FAILED: Final = 1
_SLOW: Final = 2
_SMOOTHING: Final = 1 / 16


class Breaker:
    """The health of one source: the pure policy. The time is always an argument.

    Args:
        failures: The share of failed calls at which it opens, over 0; 0.5 by default. Above 1: never.
        slow: Seconds beyond which an answer is slow; None, the default: none is, since an answer that is
            slow for one upstream is usual for another. A call whose time is up has failed in any case.
        slowness: The share of slow answers at which it opens, over 0; 0.8 by default.
        calls: Calls in the window without which there is no share, 1 or more; 20 by default.
        window: Seconds that a call counts, over 0; 10 by default.
        pause: Seconds until a probe, over 0; 5 by default. Twice as long after each probe that fails.
        longest: Seconds that a pause is at most; 60 by default.

    Attributes:
        state: "closed" lets all calls through, "open" none, "half-open" has one on its way and lets no other
            through.
    """

    __slots__ = (
        "_calls",
        "_epoch",
        "_failures",
        "_longest",
        "_pause",
        "_shortest",
        "_slow",
        "_slowness",
        "_until",
        "_usual",
        "_window",
        "state",
    )

    def __init__(
        self,
        *,
        failures: float = 0.5,
        slow: float | None = None,
        slowness: float = 0.8,
        calls: int = 20,
        window: float = 10.0,
        pause: float = 5.0,
        longest: float = 60.0,
    ) -> None:
        if min(failures, slowness, calls, pause) <= 0 or longest < pause or (slow is not None and slow <= 0):
            raise ValueError(
                "expected numbers over 0, and a longest pause that is not shorter than the first"
            )
        self._failures = failures
        self._slow = math.inf if slow is None else slow
        self._slowness = slowness
        self._calls = calls
        self._window = Window(window, 3)
        self._shortest = self._pause = pause
        self._longest = longest
        self._until = -math.inf
        self._usual = 0.0  # seconds of an answer
        self._epoch = 0
        self.state: State = "closed"

    def admit(self, now: float) -> int | None:
        """Return the ticket of a call that may go; None where it may not.

        Who gets a ticket says how the call went by one of :meth:`succeed`, :meth:`fail`, :meth:`time_out` and
        :meth:`abandon`, whatever happens.
        """
        if self.state == "open" and now >= self._until:
            self._enter("half-open")
            return self._epoch
        return self._epoch if self.state == "closed" else None

    def succeed(self, ticket: int, now: float, seconds: float) -> None:
        """Note a call that was answered after so many seconds."""
        if ticket != self._epoch:
            return
        if self.state == "half-open":
            if seconds > self._slow:
                self._open(now)
            else:
                self._close()
            return
        # The first one is all that is known: from 0 on, what is usual would be far too small for many calls.
        self._usual += (seconds - self._usual) * (_SMOOTHING if self._usual else 1.0)
        self._window.add(now, _CALLS)
        if seconds > self._slow:
            self._window.add(now, _SLOW)
            self._judge(now)

    def fail(self, ticket: int, now: float) -> None:
        """Note a call that failed."""
        if ticket != self._epoch:
            return
        if self.state == "half-open":
            self._open(now)
            return
        self._window.add(now, _CALLS)
        self._window.add(now, _FAILED)
        self._judge(now)

    def time_out(self, ticket: int, now: float, seconds: float) -> None:
        """Note a call that was not answered within so many seconds.

        Where an answer usually takes longer than that, it was the caller who had no time left.
        """
        if seconds < self._usual:
            self.abandon(ticket)
        else:
            self.fail(ticket, now)

    def abandon(self, ticket: int) -> None:
        """Note a call of which nothing is known: its caller was cancelled, or it was not made."""
        if ticket == self._epoch and self.state == "half-open":
            self._enter("open")  # the pause is over, so the next call is the probe

    def seconds_until(self, now: float) -> float:
        """Return the seconds until a probe may go, 0 or more; 0 while one is on its way."""
        return max(0.0, self._until - now)

    @property
    def usual(self) -> float:
        """Seconds that an answer usually takes; 0: none came yet."""
        return self._usual

    @property
    def totals(self) -> tuple[int, int, int]:
        """Calls, failed ones and slow ones in the window, as of its latest call."""
        calls, failed, slow = self._window.totals
        return calls, failed, slow

    def _judge(self, now: float) -> None:
        calls, failed, slow = self._window.totals
        if calls >= self._calls and (failed >= self._failures * calls or slow >= self._slowness * calls):
            self._pause = self._shortest / 2
            self._open(now)

    def _open(self, now: float) -> None:
        self._pause = min(2 * self._pause, self._longest)
        self._until = now + self._pause
        self._enter("open")

    def _close(self) -> None:
        self._window.clear()
        self._enter("closed")

    def _enter(self, state: State) -> None:
        self.state = state
        self._epoch += 1


class CircuitBreaker:
    """A layer that answers for an upstream that fails.

    A failure is a call without an answer, or with a status of 500 and more; a stream that breaks is one, too.
    An answer that is of no use otherwise shows that the upstream is there; a cancelled call, or one that was
    never made, shows nothing.

    Args:
        transport: What the calls go to.
        make: Makes the breaker of a source, whose name is the argument.
        clock: Seconds that only ever grow.

    Attributes:
        breakers: The breaker of each source.
        refused: Calls that were not let through so far.
    """

    def __init__(
        self,
        transport: Transport,
        make: Callable[[str], Breaker] = lambda _: Breaker(),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self.breakers = Sources(make, spare=lambda breaker: breaker.state == "closed")
        self.refused = 0

    @property
    def suspended(self) -> int:
        """Sources that are not called now, or only by a probe."""
        return sum(breaker.state != "closed" for _, breaker in self.breakers)

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request where the breaker lets it; the contract of :class:`freeloop.outbound.Transport`.

        Raises:
            UpstreamSuspended: It does not.
        """
        breaker = self.breakers.of(request)
        started = self._clock()
        ticket = breaker.admit(started)
        if ticket is None:
            self.refused += 1
            raise _suspended(request, breaker, started)
        try:
            response = await self._transport.send(request)
        except BaseException as error:
            _note(error, breaker, ticket, started, self._clock())
            raise
        now = self._clock()
        # The transport's own time: waiting for a turn of ours is not the upstream's slowness.
        seconds = response.seconds or now - started
        if response.status_code >= 500:
            breaker.fail(ticket, now)
        elif response.body is None or breaker.state == "half-open":
            # A probe that is streamed has shown enough: others need not wait for its end.
            breaker.succeed(ticket, now, seconds)
        else:
            response.body.when_over(lambda error: self._note_end(error, breaker, ticket, seconds))
        return response

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    def _note_end(self, error: OutboundError | None, breaker: Breaker, ticket: int, seconds: float) -> None:
        now = self._clock()
        if error is None:
            breaker.succeed(ticket, now, seconds)
        else:
            _note(error, breaker, ticket, now - seconds, now)


def _note(error: BaseException, breaker: Breaker, ticket: int, started: float, now: float) -> None:
    match error:
        case UpstreamTimeout():
            breaker.time_out(ticket, now, error.seconds)
        case UpstreamUnreachable():
            breaker.fail(ticket, now)
        case UpstreamBodyInvalid() | UpstreamStatus():
            breaker.succeed(ticket, now, now - started)
        case _:
            breaker.abandon(ticket)


def _suspended(request: OutboundRequest, breaker: Breaker, now: float) -> UpstreamSuspended:
    calls, failed, slow = breaker.totals
    seconds = breaker.seconds_until(now)
    when = f"in {seconds:.3g} s" if seconds else "now"
    return UpstreamSuspended(
        f"{request.name} was not called, since it does not work: of its last {calls} calls, {failed} "
        f"failed and {slow} were slow. The next attempt is made {when}.",
        source=request.source,
        retry_after=math.ceil(seconds),
    )
