"""The order and the times of a shutdown, and what ends a process that keeps neither."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

logger = logging.getLogger("freeloop.server")


class Drain(Protocol):
    """What is drained: the kit of an app."""

    def drain(self) -> None:
        """Turn readiness."""

    def close_streams(self) -> None:
        """End what never ends by itself."""

    def cancel(self) -> None:
        """Cancel everything that runs."""

    async def wait_idle(self) -> None:
        """Wait until nothing runs."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """When each part of a shutdown ends, in seconds after the signal.

    Attributes:
        delay: Until then, requests are taken as before.
        grace: Until then, what runs may finish; then it is cancelled.
        cleanup: Until then, its clean-up may take; then resources close.
        total: Then the process ends, whatever still runs.
    """

    delay: float
    grace: float
    cleanup: float
    total: float

    @classmethod
    def plan(cls, total: float, delay: float) -> Self:
        """Divide ``total``: a third of it belongs to clean-up and closing, and the delay may take half.

        Args:
            total: Seconds from the signal to the end of the process.
            delay: Seconds during which requests are still taken, at most half of ``total``.
        """
        return cls(min(delay, total / 2), total * 2 / 3, total * 5 / 6, total)


class Overdue:
    """Ends the process with exit code 0 when the total time of a shutdown is over.

    A thread, since the loop itself may be what hangs. What still runs is logged with the stacks of all
    threads.

    Args:
        seconds: From the signal to the end.
        flush: Called before the end, so that the log is written.
    """

    def __init__(self, seconds: float, flush: Callable[[], None]) -> None:
        self._seconds = seconds
        self._flush = flush
        # A signal handler may interrupt anything; this queue, unlike locks and new threads, bears it.
        self._begun: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._done = threading.Event()
        threading.Thread(target=self._watch, name="freeloop-overdue", daemon=True).start()

    def begin(self) -> None:
        """Begin to count; without effect the second time. May be called by a signal handler."""
        self._begun.put(True)

    def stop(self) -> None:
        """The shutdown is over."""
        self._done.set()
        self._begun.put(False)

    def _watch(self) -> None:
        if not self._begun.get() or self._done.wait(self._seconds):
            return
        stacks = "".join(
            f"Thread {ident}:\n{''.join(traceback.format_stack(frame)[-8:])}"
            for ident, frame in sys._current_frames().items()
            if ident != threading.get_ident()
        )
        logger.error(
            "the shutdown took longer than FREELOOP_SHUTDOWN_TIMEOUT: the process ends now",
            extra={"seconds": self._seconds, "stacks": stacks},
        )
        self._flush()
        os._exit(0)
