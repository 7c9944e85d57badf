"""Send again what failed, where that is safe, sensible and affordable.

* Safe: the method is idempotent (RFC 9110, section 9.2.2), the caller says so, or the request surely was not
  sent. A POST whose answer was lost may have been carried out; it is never repeated unasked.
* Sensible: at most three attempts (Google's "Site Reliability Engineering", "Handling Overload": a call that
  has failed three times is unlikely to succeed at the fourth), exponential back-off with full jitter (M.
  Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: fewest calls in total, no bursts),
  not before the upstream allows it (``Retry-After``, RFC 9110, section 10.2.3), and within the call's time.
* Affordable: each attempt beyond the first is paid from a budget, see :mod:`freeloop.outbound.budget`.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from freeloop.errors import OutboundError, UpstreamTimeout, UpstreamUnreachable
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.dates import read_date
from freeloop.outbound.response import Response
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import OutboundRequest, Transport

# A pause of more digits than this is longer than any timeout; int() would refuse thousands of them.
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_FAILED: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed attempt is followed by another, and how long after it.

    Attributes:
        attempts: Attempts a call makes at most, the first included; 1: none is repeated.
        base: Seconds; the first pause is between 0 and this, each next one may be twice as long.
        longest: Seconds that a pause of ours is at most. What the upstream asks for may be longer.
    """

    attempts: int = 3
    base: float = 0.1
    longest: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.base <= self.longest:
            raise ValueError(f"expected attempts of 1 or more and 0 <= base <= longest; got {self}")

    def pause(
        self,
        request: OutboundRequest,
        outcome: Response | OutboundError,
        *,
        attempt: int,
        remaining: float,
        dice: float,
        now: float,
    ) -> float | None:
        """Return the seconds until the next attempt, or None where there should be none.

        Args:
            request: The call.
            outcome: How its latest attempt ended.
            attempt: Which one that was; 1 for the first.
            remaining: Seconds that the call has left.
            dice: A random number from 0 to below 1.
            now: Seconds since the epoch, for a ``Retry-After`` that is a date.
        """
        if attempt >= self.attempts or not _may_repeat(request, outcome):
            return None
        pause = dice * min(self.longest, self.base * 2.0 ** min(attempt - 1, 1000))
        if isinstance(outcome, Response):
            asked = read_retry_after(outcome, now)
            if asked is not None:
                # The jitter comes on top: all who were turned away together were told the same second.
                pause += asked
            elif outcome.status_code == 429:
                return None  # a quota of unknown length: trying would only prolong it
        return pause if pause < remaining else None


class Retry:
    """A layer that repeats failed attempts. With a policy of one attempt it only counts calls for the budget.

    Args:
        transport: Makes each attempt.
        budgets: Pays for those beyond the first, by source.
        policy: When and after how long; by default three attempts with pauses of up to 0.1 and 0.2 s.
        clock: Seconds that only ever grow.
        wall: Seconds since the epoch.
        dice: Returns a random number from 0 to below 1.

    Attributes:
        retries: Attempts beyond the first, so far.
        refused: Those that the budget did not pay for, so far.
    """

    def __init__(
        self,
        transport: Transport,
        budgets: Sources[RetryBudget],
        *,
        policy: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._budgets = budgets
        self._policy = policy or RetryPolicy()
        self._clock = clock
        self._wall = wall
        self._dice = dice
        self.retries = self.refused = 0

    @property
    def left(self) -> float:
        """Attempts beyond the first that the budgets would pay for now, all together."""
        now = self._clock()
        return sum(budget.left(now) for _, budget in self._budgets)

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request, and again where it fails; the contract of :class:`freeloop.outbound.Transport`.

        Raises:
            OutboundError: How the last attempt failed.
        """
        budget = self._budgets.of(request)
        started = self._clock()
        budget.deposit(started)
        until = started + request.timeout
        try:
            response = await self._transport.send(request)
        except OutboundError as error:
            return await self._repeat(request, error, budget, until)
        if response.status_code not in _FAILED:
            return response
        return await self._repeat(request, response, budget, until)

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    async def _repeat(
        self, request: OutboundRequest, outcome: Response | OutboundError, budget: RetryBudget, until: float
    ) -> Response:
        attempt = 1
        try:
            while await self._pause(request, outcome, budget, until, attempt):
                attempt += 1
                self.retries += 1
                try:
                    outcome = await self._transport.send(request.within(until - self._clock()))
                except OutboundError as error:
                    outcome = error
            if isinstance(outcome, OutboundError):
                raise outcome
            return outcome
        finally:
            del outcome  # a ring of the error and this frame would wait for the garbage collector

    async def _pause(
        self,
        request: OutboundRequest,
        outcome: Response | OutboundError,
        budget: RetryBudget,
        until: float,
        attempt: int,
    ) -> bool:
        """Wait until the next attempt, which is then paid for; return False where there is none."""
        now = self._clock()
        pause = self._policy.pause(
            request, outcome, attempt=attempt, remaining=until - now, dice=self._dice(), now=self._wall()
        )
        if pause is None:
            return False
        receipt = budget.withdraw(now)
        if receipt is None:
            self.refused += 1
            return False
        made = False
        if isinstance(outcome, Response):
            outcome.close()  # a stream that nobody reads holds no slot meanwhile
        try:
            await asyncio.sleep(pause)
            # The loop may have been late.
            made = self._clock() < until
        finally:
            if not made:
                budget.refund(receipt)
        return made


def read_retry_after(response: Response, now: float) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, 0 or more; None where it is missing or unreadable.

    Args:
        response: A date in it is compared with the answer's own ``Date``, so that a wrong clock, theirs or
            ours, does not matter.
        now: Seconds since the epoch, where it has none.
    """
    value = response.headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = read_date(value)
    if until is None:
        return None
    since = read_date(response.headers.get("Date", ""))
    return max(0.0, until - (now if since is None else since))


def _may_repeat(request: OutboundRequest, outcome: Response | OutboundError) -> bool:
    """Return whether an attempt that ended so may be followed by another."""
    match outcome:
        case Response():
            return request.repeatable and outcome.status_code in _FAILED
        case UpstreamUnreachable():
            return (request.repeatable or not outcome.sent) and not outcome.lasting
        case UpstreamTimeout():
            return request.repeatable
        case _:
            # What came is no use, and would be none again; or nothing was sent, by a decision of our own.
            return False
