"""What the watchdog has found: by place, counted, with the worst stack of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from freeloop.watch.stack import Line, Stack
from freeloop.watch.verdict import Cause

logger = logging.getLogger("freeloop.watch")
_MOST: Final = 200
_Key: TypeAlias = tuple[str, int, str]  # file, line, route


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of code that blocks the loop.

    Attributes:
        file: The path of its file; empty: no line was seen.
        line: Its number.
        function: The qualified name of its function.
        route: The template of the route that runs it, or the name of a background function; empty: neither.
        cause: What held the loop up the worst time: ``waiting``, ``computing``, ``gil`` or ``thread``.
        advice: What to do.
        times: How often it did.
        seconds: For how long, all times together.
        longest: The worst time, in seconds.
        request_id: The request of the worst time; empty: it was none.
        steps: How many steps made up the worst time, at least; 1: a single one.
        thread: The thread that held the GIL the worst time; empty: the loop's own.
        stack: The stack of the worst time, the innermost line first.
        first: When it was found first, in seconds since the epoch.
        last: When it was found last.
        goes_on: Whether it blocks the loop now, for ``longest`` seconds so far.
    """

    file: str
    line: int
    function: str
    route: str
    cause: Cause
    advice: str
    times: int
    seconds: float
    longest: float
    request_id: str
    steps: int
    thread: str
    stack: Stack
    first: float
    last: float
    goes_on: bool = False

    @property
    def place(self) -> str:
        """The line: ``file:line in function``; empty: not known."""
        return str(Line(self.file, self.line, self.function)) if self.file else ""


class Ignored:
    """Places that may block, each with the reason why.

    Args:
        reasons: The reason by place; a place is the end of a file's path, a colon, and the name of the
            function, whole or the end of its qualified name: ``shop/reports.py:build``.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons
        self._unmet = set(reasons)

    def covers(self, file: str, function: str) -> bool:
        """Return whether a place is one of them."""
        for place in self._reasons:
            ending, _, name = place.rpartition(":")
            if f".{function}".endswith(f".{name}") and f"/{file}".endswith(f"/{ending}"):
                self._unmet.discard(place)
                return True
        return False

    def warn_of_unmet(self) -> None:
        """Log those that nothing was found of: they may be left out."""
        for place in sorted(self._unmet):
            logger.warning(
                "an entry of FREELOOP_WATCH_IGNORE was not met: leave it out where it is not needed any more",
                extra={"place": place, "reason": self._reasons[place]},
            )


class Findings:
    """Bounded: at most 200 places are told apart, the one not met for longest gives way and is counted.

    Attributes:
        dropped: How many gave way.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._found: dict[_Key, Finding] = {}
        self._counts: dict[tuple[str, ...], float] = {}
        self._going_on: tuple[_Key, Finding | None] | None = None

    def list_all(self) -> tuple[Finding, ...]:
        """Return what was found, what took most time first."""
        return tuple(sorted(self._found.copy().values(), key=lambda found: -found.seconds))

    @property
    def counts(self) -> dict[tuple[str, ...], float]:
        """How often the loop was blocked, by route and cause."""
        return self._counts.copy()

    def add(self, seen: Finding) -> Finding:
        """Add one block, and return all that is known of its place.

        What was added while it went on is added once more at its end, and then counts only once.
        """
        if self._going_on is not None:
            key, before = self._going_on
            self._put(key, before)
        key = (seen.file, seen.line, seen.route)
        before = self._found.get(key)
        self._going_on = (key, before) if seen.goes_on else None
        if not seen.goes_on:
            label = (seen.route or "(none)", seen.cause)
            self._counts[label] = self._counts.get(label, 0.0) + 1
        found = seen if before is None else _merge(before, seen)
        self._put(key, found)
        return found

    def _put(self, key: _Key, finding: Finding | None) -> None:
        self._found.pop(key, None)
        if finding is None:
            return
        if len(self._found) >= _MOST:
            del self._found[next(iter(self._found))]
            self.dropped += 1
        self._found[key] = finding


def _merge(before: Finding, seen: Finding) -> Finding:
    return replace(
        seen if seen.longest >= before.longest else before,
        times=before.times + 1,
        seconds=before.seconds + seen.longest,
        first=before.first,
        last=seen.last,
        goes_on=seen.goes_on,
    )
