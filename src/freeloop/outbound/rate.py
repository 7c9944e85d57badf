"""At most so many attempts a second, as the upstream's terms of use say.

The generic cell rate algorithm (ITU-T I.371): a token bucket whose whole state is one point in time, when the
bucket would be full again. Every attempt pays, retries and hedges too, since the upstream counts them.

One timer wakes the first in line only. aiolimiter woke all of them at every token, which took the loop's
whole time with some thousand waiters (mjpieters/aiolimiter, issue 73). Who could not have its turn in time is
told so at once, as in resilience4j's ``AtomicRateLimiter.java``: waiting would not change the answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from freeloop.errors import UpstreamBusy
from freeloop.outbound.response import Response
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.waiting_line import WaitingLine

_ROUNDING: Final = 1e-6  # s: sums of intervals are not exact
_LATE: Final = 0.01  # s that the loop may be late without a turn being lost
_SHORTEST: Final = 0.001  # s of a timer: the resolution of uvloop's


class Rate:
    """The tokens of one source: the pure policy.

    Args:
        per_second: Attempts a second in the long run, over 0; 0.5 is one every two seconds.
        burst: Attempts that may go at once after a pause, 1 or more; 1, the default, spaces them evenly.
    """

    __slots__ = ("_full_at", "_interval", "_slack", "burst", "per_second")

    def __init__(self, per_second: float, *, burst: int = 1) -> None:
        if not 0 < per_second < math.inf or 1 / per_second == math.inf or burst < 1:
            raise ValueError(f"per_second is over 0 and burst 1 or more, not {per_second} and {burst}")
        self.per_second = per_second
        self.burst = burst
        self._interval = 1 / per_second
        self._slack = (burst - 1) * self._interval
        self._full_at = -math.inf  # the "theoretical arrival time"

    def take(self, now: float, *, late: float = 0.0) -> bool:
        """Take a token; return False where there is none.

        Args:
            now: The time.
            late: Seconds by which this may come later than the token: for those who waited for it, so that a
                timer's delay does not lower the rate.
        """
        full_at = max(self._full_at, now - late)
        if full_at - now > self._slack + _ROUNDING:
            return False
        self._full_at = full_at + self._interval
        return True

    def give_back(self) -> None:
        """Give a token back that was taken and not used; a full bucket stays full."""
        self._full_at -= self._interval

    def seconds_until(self, now: float, ahead: int = 0) -> float:
        """Return the seconds until there is a token, after those for so many others; 0 or more."""
        full_at = max(self._full_at, now) + ahead * self._interval
        return max(0.0, full_at - now - self._slack)


class _Turnstile:
    """A rate, those who wait for it, and the one timer that lets them through."""

    __slots__ = ("_clock", "_timer", "line", "rate")

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self.rate = rate
        self.line = WaitingLine[None](lambda _: self.take_back())
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, seconds: float) -> bool:
        """Wait for a token, which is then taken; return whether it came within ``seconds``."""
        if self._timer is None:
            self._set_timer(self._clock())
        try:
            await self.line.wait(seconds)
        except TimeoutError:
            return False
        finally:
            if not self.line.waiting:
                self._stop_timer()
        return True

    def take_back(self) -> None:
        """Take back a token that is not used, and give it to the first in line."""
        self.rate.give_back()
        self._stop_timer()
        self._let_through()

    def _let_through(self) -> None:
        self._timer = None
        now = self._clock()
        while self.line.waiting and self.rate.take(now, late=_LATE):
            if not self.line.call_next(None):
                self.rate.give_back()  # those who wait were cancelled just now
                break
        if self.line.waiting:
            self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        seconds = max(self.rate.seconds_until(now), _SHORTEST)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._let_through)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class RateLimit:
    """A layer that lets only so many attempts a second through, in the order in which they came.

    Args:
        transport: What the attempts go to.
        make: Makes the rate of a source, whose name is the argument; None: any number of attempts.
        clock: Seconds that only ever grow.

    Attributes:
        refused: Calls whose turn would have come too late, or did, so far.
    """

    def __init__(
        self,
        transport: Transport,
        make: Callable[[str], Rate | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._sources = Sources(
            lambda name: None if (rate := make(name)) is None else _Turnstile(rate, clock),
            spare=lambda turnstile: turnstile is None or not turnstile.line.waiting,
        )
        self._clock = clock
        self.refused = 0

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn now."""
        return sum(turnstile.line.waiting for _, turnstile in self._sources if turnstile is not None)

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request when it is its turn; the contract of :class:`freeloop.outbound.Transport`.

        Raises:
            UpstreamBusy: Its turn would come too late, or came too late.
        """
        turnstile = self._sources.of(request)
        # Nobody overtakes those who wait, also where a token has come meanwhile.
        if turnstile is not None and (turnstile.line.waiting or not turnstile.rate.take(self._clock())):
            request = await self._wait(turnstile, request)
        return await self._transport.send(request)

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    async def _wait(self, turnstile: _Turnstile, request: OutboundRequest) -> OutboundRequest:
        """Wait for a token, which is then taken; return the request with the time that it has left."""
        started = self._clock()
        rate, ahead = turnstile.rate, turnstile.line.waiting
        seconds = rate.seconds_until(started, ahead)
        if seconds < request.timeout and await turnstile.wait(request.timeout):
            remaining = request.timeout - (self._clock() - started)
            if remaining > 0:
                return request.within(remaining)
            turnstile.take_back()
        self.refused += 1
        raise UpstreamBusy(
            f"{request.name} was not called: its turn comes in {seconds:.3g} s ({ahead} wait before it, "
            f"{rate.per_second:g} attempts a second are allowed), and it has {request.timeout:g} s. Call it "
            "less, or allow more time.",
            source=request.source,
            retry_after=math.ceil(seconds),
        )
