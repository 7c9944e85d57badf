"""The watchdog of one loop: what it has found, and who is told."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from freeloop.metrics import Durations
from freeloop.watch.advice import advise
from freeloop.watch.blame import Blamed
from freeloop.watch.findings import Finding, Findings, Ignored
from freeloop.watch.place import find_place
from freeloop.watch.probe import Probe
from freeloop.watch.stack import Stack
from freeloop.watch.verdict import Block

logger = logging.getLogger("freeloop.watch")

_SHOWN: Final = 15  # lines of a stack in the log


class Watch:
    """Watches the loop that runs in this thread.

    Args:
        threshold: From how many seconds on the loop counts as blocked; 0.02 or more.
        backstop: Whether to use SIGALRM and a timer on the CPU clock of the loop's thread, for what holds
            the GIL.
        ignore: The reason by place of what may block; see :class:`freeloop.watch.findings.Ignored`.

    Attributes:
        stalls: How often the host did not let the process run while the loop was due.
        stalled: For how long, in seconds.
        dropped: How many findings gave way to newer ones.
    """

    def __init__(
        self, *, threshold: float = 0.1, backstop: bool = True, ignore: Mapping[str, str] | None = None
    ) -> None:
        if threshold < 0.02:
            raise ValueError(f"expected a threshold of 0.02 s or more; got {threshold!r}")
        self.stalls = 0
        self.stalled = 0.0
        self._ignored = Ignored(ignore or {})
        self._findings = Findings()
        self._logged: dict[tuple[str, int, str], float] = {}
        self._waited = 0.0
        self._probe = Probe(asyncio.get_running_loop(), threshold=threshold, backstop=backstop, listener=self)
        self._cpu = self._probe.heart.last.cpu

    def stop(self) -> None:
        """Watch no longer; what was found stays. To be called once, in the loop's thread."""
        self._probe.stop()
        self._ignored.warn_of_unmet()

    async def catch_up(self, seconds: float = 1.0) -> None:
        """Wait until what has happened so far is judged; at most so many seconds."""
        await self._probe.catch_up(seconds)

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found, what took most time first; in any thread."""
        return self._findings.list_all()

    @property
    def dropped(self) -> int:
        """How many findings gave way to newer ones."""
        return self._findings.dropped

    @property
    def blocks(self) -> dict[tuple[str, ...], float]:
        """How often the loop was blocked, by route and cause."""
        return self._findings.counts

    @property
    def lags(self) -> Durations:
        """How late the loop was."""
        return self._probe.heart.lags

    def take_worst_lag(self) -> float:
        """Return how late the loop was at worst since the last call, in seconds; on the loop."""
        heart = self._probe.heart
        worst, heart.worst = heart.worst, 0.0
        return worst

    @property
    def busy(self) -> float:
        """For how many seconds the loop was busy: it computed, or was blocked."""
        return self._probe.heart.last.cpu - self._cpu + self._waited

    def note_stall(self, seconds: float) -> None:
        """Count a time in which the host did not let the process run; the log has each over a second."""
        self.stalls += 1
        self.stalled += seconds
        if seconds > 1:
            logger.info("the host stopped the process for a while", extra={"seconds": round(seconds, 3)})

    def note_block(self, block: Block, thread: Stack, working_for: Blamed | None, *, goes_on: bool) -> None:
        """Keep a block, and log it."""
        finding = describe(block, thread, working_for, goes_on=goes_on)
        if finding is None or self._ignored.covers(finding.file, finding.function):
            return
        if block.cause == "waiting" and not goes_on:
            self._waited += block.seconds
        known = self._findings.add(finding)
        if self._is_news(finding):
            logger.warning(
                "the event loop is blocked" if goes_on else "the event loop was blocked",
                extra={
                    "seconds": round(finding.longest, 3),
                    "place": finding.place,
                    "route": finding.route,
                    "cause": finding.cause,
                    "advice": finding.advice,
                    "times": known.times,
                    **({"steps": finding.steps} if finding.steps > 1 else {}),
                    **({"held_by": finding.thread} if finding.thread else {}),
                    **({"request_id": finding.request_id} if finding.request_id else {}),
                    "stack": "\n".join(map(str, finding.stack[:_SHOWN])),
                },
            )

    def _is_news(self, finding: Finding) -> bool:
        """Return whether to log it: once for each place, and again where it is worse by half than before."""
        key = (finding.file, finding.line, finding.route)
        if finding.longest < 1.5 * self._logged.get(key, 0.0):
            return False
        if len(self._logged) > 1_000:
            self._logged.clear()
        self._logged[key] = finding.longest
        return True


def describe(block: Block, thread: Stack, working_for: Blamed | None, *, goes_on: bool) -> Finding | None:
    """Make a finding of a block; None: nothing is known of it, so that it would help nobody."""
    worst = block.worst
    calls: tuple[str, ...] = ()
    if block.thread is not None:
        stack, blamed, place = thread, working_for, find_place(thread)
    elif worst is not None:
        stack, blamed, calls, place = worst.stack, worst.blamed, worst.calls, worst.place
    else:
        return None
    if place is None:
        return None
    steps = 1 if block.starvation is None else block.starvation.steps
    now = time.time()
    return Finding(
        file=place.file,
        line=place.line,
        function=place.function,
        route="" if blamed is None else blamed.route,
        cause=block.cause,
        advice=advise(block.cause, stack[: stack.index(place)], calls, steps=steps),
        times=1,
        seconds=block.seconds,
        longest=block.seconds,
        request_id="" if blamed is None else blamed.id,
        steps=steps,
        thread="" if block.thread is None else _name_thread(block.thread),
        stack=stack,
        first=now,
        last=now,
        goes_on=goes_on,
    )


@contextmanager
def watch(
    *, threshold: float = 0.1, backstop: bool = True, ignore: Mapping[str, str] | None = None
) -> Iterator[Watch]:
    """Watch the loop that runs in this thread, for the block; see :class:`Watch`."""
    watching = Watch(threshold=threshold, backstop=backstop, ignore=ignore)
    try:
        yield watching
    finally:
        watching.stop()


def _name_thread(ident: int) -> str:
    return next((each.name for each in threading.enumerate() if each.ident == ident), str(ident))
