"""What the gate keeps for one route: what it declares, its admission, and who waits for it."""

from __future__ import annotations

import time

from freeloop.gate.admission import Admission
from freeloop.gate.declare import Declaration
from freeloop.waiting_line import WaitingLine


class Bulkhead:
    """One route: an overload here sheds nothing elsewhere.

    Attributes:
        template: The route's template; empty for requests that match no route.
        declaration: What the route declares.
        admission: Decides who may run, who waits and who is shed; None: everybody runs.
    """

    __slots__ = ("_line", "admission", "declaration", "template")

    def __init__(self, template: str, declaration: Declaration, admission: Admission | None) -> None:
        self.template = template
        self.declaration = declaration
        self.admission = admission
        self._line: WaitingLine[None] = WaitingLine(
            self._take_back, None if admission is None else admission.abandon
        )

    @property
    def baseline(self) -> float | None:
        """The latency without a queue in seconds, None where it is not known."""
        return None if self.admission is None else self.admission.baseline

    async def wait(self, admission: Admission, seconds: float) -> bool:
        """Wait for a place; return whether it came within ``seconds``."""
        try:
            await self._line.wait(seconds)
        except TimeoutError:
            admission.shed += 1
            return False
        return True

    def leave(self, admission: Admission, now: float, latency: float | None) -> None:
        """Give back a place, and hand it to those who wait."""
        free = admission.leave(now, latency)
        while free and self._line.call_next(None):
            admission.promote()
            free -= 1

    def _take_back(self, _: None) -> None:
        if self.admission is not None:
            self.leave(self.admission, time.monotonic(), None)
