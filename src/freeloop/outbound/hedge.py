"""Ask a second time where an answer takes longer than usual, and take the answer that comes first.

J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013: a second request after
the 95th percentile shortens the tail much and adds some 5 % of load. As in Finagle's
``BackupRequestFilter.scala`` the load comes out of the budget that retries are paid from, so that an upstream
that is slow for all its callers is not asked twice by all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from itertools import takewhile
from typing import Final, cast

from freeloop.errors import OutboundError
from freeloop.outbound.budget import RetryBudget
from freeloop.outbound.response import Response
from freeloop.outbound.sources import Sources
from freeloop.outbound.transport import OutboundRequest, Transport

_FIRST: Final = 20  # answers, before which nothing is known of the 95th percentile
_STEP: Final = 0.05  # of the estimate, by which it moves in the long run
_PART: Final = 0.5  # of the budget: the other half is kept for retries
_PATIENCE: Final = 1.0  # s that a cancelled request may take to give back what it holds
_SHORTEST: Final = 0.001  # s: below, the second request is hardly ever the first to be answered


class Quantile:
    """An estimate of a quantile of a stream, which follows its changes: pure, one number.

    Stochastic approximation (H. Robbins and S. Monro, 1951), in the form of Q. Ma, S. Muthukrishnan and M.
    Sandler, "Frugal Streaming for Estimating Quantiles", 2013: it rises by a step in proportion to ``share``
    where a value is above it, and falls in proportion to ``1 - share`` where it is below. It asks for nothing
    but that comparison, so a call that was ended early, of which only "longer than this" is known, does not
    distort it.

    Args:
        share: Of the values that are below it, between 0 and 1.

    Attributes:
        count: Values seen so far.
        value: The estimate; 0.0 before the first value.
    """

    __slots__ = ("_share", "count", "value")

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"a quantile is between 0 and 1, not {share}")
        self._share = share
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        """Note a value, 0 or more."""
        self.count += 1
        if self.count == 1:
            self.value = value
            return
        step = max(_STEP, 1 / self.count)
        if value > self.value:
            # From a value of 0 there is no way up by factors.
            self.value = self.value * (1 + step * self._share) or value
        else:
            self.value *= 1 - step * (1 - self._share)


class HedgeDelay:
    """After how long a second request goes out: the pure policy of one source.

    Args:
        quantile: Of the answers that come in time, between 0 and 1; 0.95 by default.
    """

    __slots__ = ("_estimate",)

    def __init__(self, *, quantile: float = 0.95) -> None:
        self._estimate = Quantile(quantile)

    @property
    def seconds(self) -> float | None:
        """The delay; None while too little is known."""
        if self._estimate.count < _FIRST:
            return None
        return max(self._estimate.value, _SHORTEST)

    def learn(self, seconds: float) -> None:
        """Note how long a first request took, or that it took longer than this."""
        self._estimate.add(seconds)


class Hedge:
    """A layer that asks a second time where an answer is late. Only what may be repeated is hedged.

    The first request runs in the caller's own task; only a second one gets a task. The loser is cancelled,
    and has given everything back before the call returns. A streamed call is made once.

    Args:
        transport: Makes both requests.
        budgets: Pays for the second one, by source; :class:`freeloop.outbound.retry.Retry` fills it.
        make: Makes the delay of a source, whose name is the argument; None: this source is not hedged.
        clock: Seconds that only ever grow.

    Attributes:
        hedges: Second requests that went out so far.
    """

    def __init__(
        self,
        transport: Transport,
        budgets: Sources[RetryBudget],
        make: Callable[[str], HedgeDelay | None] = lambda _: HedgeDelay(),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._budgets = budgets
        self._clock = clock
        self._tracks = Sources(lambda name: None if (delay := make(name)) is None else _Track(delay))
        self.hedges = 0

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request, twice where it takes long; the contract of ``freeloop.outbound.Transport``."""
        track = self._tracks.of(request)
        if track is None or request.stream or not request.repeatable:
            return await self._transport.send(request)
        seconds = track.delay.seconds
        started = self._clock()
        if seconds is None or seconds >= request.timeout:
            response = await self._transport.send(request)
        else:
            race = _Race(request, started, started + seconds)
            track.waiting[race] = None
            if track.timer is None:
                self._set_timer(track, seconds)
            try:
                response = await self._transport.send(request)
            except BaseException as error:
                if race.second is None:
                    raise
                response = await race.finish(error)
            else:
                if race.second is not None:
                    response = await race.finish(response)
            finally:
                track.waiting.pop(race, None)
        if response.status_code < 500:
            # Where the second one has won, the first took longer than this: all that the estimate asks.
            track.delay.learn(self._clock() - started)
        return response

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    def _sweep(self, track: _Track) -> None:
        track.timer = None
        now = self._clock()
        due = list(takewhile(lambda race: race.due <= now, track.waiting))
        for race in due:
            del track.waiting[race]
            self._start_second(race, now)
        if track.waiting:
            self._set_timer(track, next(iter(track.waiting)).due - now)

    def _set_timer(self, track: _Track, seconds: float) -> None:
        # An empty context: whoever sets the timer must not lend others its scope and variables.
        track.timer = asyncio.get_running_loop().call_later(
            max(seconds, _SHORTEST), self._sweep, track, context=Context()
        )

    def _start_second(self, race: _Race, now: float) -> None:
        request, remaining = race.request, race.started + race.request.timeout - now
        if (
            remaining > 0
            and not race.task.cancelling()
            and self._budgets.of(request).withdraw(now, part=_PART) is not None
        ):
            self.hedges += 1
            race.second = asyncio.get_running_loop().create_task(
                self._transport.send(request.within(remaining)), name="hedge"
            )
            race.second.add_done_callback(race.interrupt)


class _Track:
    """The delay of one source, and its calls that are not late yet, with one timer for all of them.

    The timer is set for the one that came first. The delay is nearly the same for all, so the others are due
    in the order in which they came. Where answers come in time, a call costs an entry in a dict.
    """

    __slots__ = ("delay", "timer", "waiting")

    def __init__(self, delay: HedgeDelay) -> None:
        self.delay = delay
        self.timer: asyncio.TimerHandle | None = None
        self.waiting: dict[_Race, None] = {}


class _Race:
    """One call and, from some moment on, a second one."""

    __slots__ = ("_finishing", "_interrupting", "due", "request", "second", "started", "task")

    def __init__(self, request: OutboundRequest, started: float, due: float) -> None:
        self.request = request
        self.started = started
        self.due = due
        self.task = cast("asyncio.Task[object]", asyncio.current_task())
        self.second: asyncio.Task[Response] | None = None
        self._interrupting = self._finishing = False

    def interrupt(self, second: asyncio.Task[Response]) -> None:
        """End the first request, where the second one has brought an answer."""
        # A failure is read here, so that asyncio does not report it: the first one may still be answered.
        if _is_answer(second) and not self._finishing:
            self._interrupting = True
            self.task.cancel()

    async def finish(self, outcome: Response | BaseException) -> Response:
        """Return the answer of the call, now that its first request has ended so."""
        assert self.second is not None  # noqa: S101 - for the type checker
        self._finishing = True  # from here on this waits for the second one, and is not interrupted by it
        try:
            # As in asyncio.timeout(): it is ours only where nobody else has cancelled, too.
            ours = self._interrupting and not self.task.uncancel()
            if ours and isinstance(outcome, asyncio.CancelledError):
                return self.second.result()
            failed = isinstance(outcome, OutboundError)
            if failed or (isinstance(outcome, Response) and outcome.status_code >= 500):
                await asyncio.wait((self.second,))
                if _is_answer(self.second):
                    return self.second.result()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        finally:
            del outcome  # a ring of the error and this frame would wait for the garbage collector
            if not self.second.done():
                self.second.cancel()
                await asyncio.wait((self.second,), timeout=_PATIENCE)


def _is_answer(task: asyncio.Task[Response]) -> bool:
    return not task.cancelled() and task.exception() is None and task.result().status_code < 500
