"""How many attempts more than calls: the pure policy, which retries and hedges share.

A retry is load on an upstream that just failed. When each of three attempts may follow every failure, an
outage triples the load, and the upstream does not come back (Google's "Site Reliability Engineering", chapter
"Handling Overload": a budget of 10 % for each client). The form is that of Finagle's ``RetryBudget.scala``
(a share of the calls, which expires, and a reserve for those who call seldom) with Envoy's ``retry_budget``
in one point: the reserve is not added to the share, the larger of the two counts. So under load the share is
a bound, and not just nearly one.
"""

from __future__ import annotations

from typing import Final

from freeloop.outbound.window import Window

_CALLS: Final = 0
_EXTRA: Final = 1
_SECONDS: Final = 10.0


class RetryBudget:
    """At most ``share`` of the calls of the last 10 s go again, in any stretch of time.

    Args:
        share: Extra attempts as a share of the calls, 0 or more; 0.1 by default.
        minimum: Extra attempts a second for those who call seldom, 0 or more: retries of the one call that a
            minute brings should not need nine others. 0.5 by default, 5 in 10 s.

    Attributes:
        refused: How many extra attempts it has refused so far.
    """

    __slots__ = ("_reserve", "_share", "_window", "refused")

    def __init__(self, *, share: float = 0.1, minimum: float = 0.5) -> None:
        if share < 0 or minimum < 0:
            raise ValueError(f"share and minimum are 0 or more, not {share} and {minimum}")
        self._share = share
        self._reserve = minimum * _SECONDS
        self._window = Window(_SECONDS, 2)
        self.refused = 0

    def deposit(self, now: float) -> None:
        """Note a call, before its first attempt."""
        self._window.add(now, _CALLS)

    def withdraw(self, now: float, *, part: float = 1.0) -> int | None:
        """Return a receipt where one more attempt is allowed, which is then taken; else None.

        Args:
            now: The time.
            part: Of the budget, from 0 to 1, that may be used up for this purpose. A hedge, which only makes
                an answer faster, leaves half of it to the retries, without which there is none.
        """
        self._window.move(now)
        calls, extra = self._window.totals
        if extra + 1 > part * max(self._share * calls, self._reserve):
            self.refused += 1
            return None
        return self._window.add(now, _EXTRA)

    def left(self, now: float) -> float:
        """Return how many attempts more are allowed now; 0 or more."""
        self._window.move(now)
        calls, extra = self._window.totals
        return max(0.0, max(self._share * calls, self._reserve) - extra)

    def refund(self, receipt: int) -> None:
        """Give back what was withdrawn for an attempt that was not made."""
        self._window.take_back(receipt, _EXTRA)
