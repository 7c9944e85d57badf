"""Those who wait for a turn, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class WaitingLine:
    """A queue whose turns are handed over, so that nobody who comes later can slip in between.

    ``asyncio.Semaphore`` woke waiters and let them compete with newcomers, and out of order where some were
    cancelled in the same moment (python/cpython issue 90155). Here the turn belongs to the waiter from the
    moment it is called; where it is cancelled just then, the turn is given back.

    Args:
        give_back: Takes a turn back that was called and cannot be used.
    """

    __slots__ = ("_give_back", "_waiting")

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, seconds: float) -> bool:
        """Wait for a turn; return whether it came within ``seconds``."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._waiting[turn] = None
        timer = loop.call_later(seconds, self._give_up, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.pop(turn, None)
            elif turn.result():
                self._give_back()
            raise
        finally:
            timer.cancel()

    def call_next(self) -> bool:
        """Give a turn to the first in line; return False where nobody waits."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():  # otherwise cancelled, and about to leave the line itself
                turn.set_result(True)
                return True
        return False

    def _give_up(self, turn: asyncio.Future[bool]) -> None:
        if not turn.done():
            del self._waiting[turn]
            turn.set_result(False)
