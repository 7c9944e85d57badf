"""One look at what the loop runs."""

from __future__ import annotations

from typing import NamedTuple

from freeloop.watch.blame import Blamed
from freeloop.watch.stack import Line, Stack


class Sample(NamedTuple):
    """What the loop ran at one moment.

    Attributes:
        at: When, in seconds of :func:`time.monotonic`.
        seconds: How much time before it this stands for.
        cpu: CPU time of the loop's thread so far, in seconds.
        stack: Its lines, the innermost first.
        place: The line of them that is the app's.
        step: A number that two samples of one step of one task share.
        blamed: Whose work it is; None: nobody's, or not known.
        calls: What the innermost line calls.
    """

    at: float
    seconds: float
    cpu: float
    stack: Stack
    place: Line | None
    step: int
    blamed: Blamed | None
    calls: tuple[str, ...]
