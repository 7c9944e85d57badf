"""What the gate keeps for one route: what it declares, its admission, and who waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from freeloop.gate.admission import Admission
from freeloop.gate.declare import Declaration


class Bulkhead:
    """One route: an overload here sheds nothing elsewhere.

    Attributes:
        template: The route's template; empty for requests that match no route.
        declaration: What the route declares.
        admission: Decides who may run, who waits and who is shed; None: everybody runs.
    """

    __slots__ = ("_waiting", "admission", "declaration", "template")

    def __init__(self, template: str, declaration: Declaration, admission: Admission | None) -> None:
        self.template = template
        self.declaration = declaration
        self.admission = admission
        self._waiting: deque[asyncio.Future[bool]] = deque()

    @property
    def baseline(self) -> float | None:
        """The latency without a queue in seconds, None where it is not known."""
        return None if self.admission is None else self.admission.baseline

    async def wait(self, admission: Admission, now: float, seconds: float) -> bool:
        """Wait for a place; return whether it came within ``seconds``."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(place)

        def give_up() -> None:
            if not place.done():
                place.set_result(False)
                self._waiting.remove(place)
                admission.abandon()
                admission.shed += 1

        timer = loop.call_later(seconds, give_up)
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                with suppress(ValueError):  # passed over by leave() in the same turn
                    self._waiting.remove(place)
                admission.abandon()
            elif place.result():
                # The place came in the same moment: it goes to the next.
                self.leave(admission, now, None)
            raise
        finally:
            timer.cancel()

    def leave(self, admission: Admission, now: float, latency: float | None) -> None:
        """Give back a place, and hand it to those who wait."""
        free = admission.leave(now, latency)
        while free and self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # otherwise cancelled, and about to say so itself
                admission.promote()
                place.set_result(True)
                free -= 1
