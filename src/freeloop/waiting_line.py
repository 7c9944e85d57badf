"""Those who wait for a turn, in the order in which they came.

Any room may import it; it imports nothing of ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
        abandon: Is called where somebody leaves the line without a turn.

    Attributes:
        waiting: How many wait now.
    """

    __slots__ = ("_abandon", "_give_back", "_turns", "waiting")

    def __init__(self, give_back: Callable[[T], None], abandon: Callable[[], None] | None = None) -> None:
        self._give_back = give_back
        self._abandon = abandon
        # Who leaves stays in it until those before are gone: a search would take as long as the line is.
        self._turns: deque[asyncio.Future[T]] = deque()
        self.waiting = 0

    async def wait(self, seconds: float | None = None) -> T:
        """Wait for a turn, and return what is handed over with it.

        Raises:
            TimeoutError: It did not come within ``seconds``; None: it may take as long as it takes.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[T] = loop.create_future()
        self._turns.append(turn)
        self.waiting += 1
        timer = None if seconds is None else loop.call_later(seconds, self._give_up, turn)
        try:
            return await turn
        except BaseException:
            if turn.cancel() or turn.cancelled():
                self._leave()
            elif turn.exception() is None:
                self._give_back(turn.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def call_next(self, turn: T) -> bool:
        """Give a turn to the first in line; return False where nobody waits."""
        while self._turns:
            first = self._turns.popleft()
            if not first.done():  # otherwise it has left the line, or is about to
                self.waiting -= 1
                first.set_result(turn)
                return True
        return False

    def close(self, make_error: Callable[[], BaseException]) -> None:
        """Let all who wait fail, each with an error of its own."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                self.waiting -= 1
                turn.set_exception(make_error())

    def _give_up(self, turn: asyncio.Future[T]) -> None:
        if not turn.done():
            turn.set_exception(TimeoutError())
            self._leave()

    def _leave(self) -> None:
        self.waiting -= 1
        while self._turns and self._turns[0].done():
            self._turns.popleft()
        if self._abandon is not None:
            self._abandon()
