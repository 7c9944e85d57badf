"""Those who wait for a turn, in the order in which they came.

Any room may import it; it imports nothing of ours.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingLine(Generic[T]):
    """A queue whose turns are handed over, so that nobody who comes later can slip in between.

    ``asyncio.Semaphore`` woke waiters and let them compete with newcomers, and out of order where some were
    cancelled in the same moment (python/cpython issue 90155). Here the turn belongs to the waiter from the
    moment it is called; where it is cancelled just then, the turn is given back.

    Args:
        give_back: Takes a turn back that was called and cannot be used.
        abandon: Is called where somebody who was not called leaves the line, before it is closed.
    """

    __slots__ = ("_abandon", "_give_back", "_turns")

    def __init__(self, give_back: Callable[[T], None], abandon: Callable[[], None] | None = None) -> None:
        self._give_back = give_back
        self._abandon = abandon
        self._turns: OrderedDict[asyncio.Future[T], None] = OrderedDict()  # from whose middle many may leave

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._turns)

    async def wait(self, seconds: float | None = None) -> T:
        """Wait for a turn, and return what is handed over with it.

        Raises:
            TimeoutError: It did not come within ``seconds``; None: it may take as long as it takes.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[T] = loop.create_future()
        self._turns[turn] = None
        timer = None if seconds is None else loop.call_later(seconds, self._give_up, turn)
        try:
            return await turn
        except BaseException:
            if turn.cancel() or turn.cancelled():
                self._leave(turn)
            elif turn.exception() is None:
                self._give_back(turn.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            del turn  # its error refers to this frame: a ring, for the garbage collector, of each vain wait

    def call_next(self, turn: T) -> bool:
        """Give a turn to the first in line; return False where nobody waits."""
        while self._turns:
            first, _ = self._turns.popitem(last=False)
            if not first.done():  # otherwise it was cancelled, and is about to leave
                first.set_result(turn)
                return True
        return False

    def close(self, make_error: Callable[[], BaseException]) -> None:
        """Let all who wait fail, each with an error of its own."""
        while self._turns:
            turn, _ = self._turns.popitem(last=False)
            if not turn.done():
                turn.set_exception(make_error())

    def _give_up(self, turn: asyncio.Future[T]) -> None:
        if not turn.done():
            turn.set_exception(TimeoutError())
            self._leave(turn)

    def _leave(self, turn: asyncio.Future[T]) -> None:
        self._turns.pop(turn, None)
        if self._abandon is not None:
            self._abandon()
