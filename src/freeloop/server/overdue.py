"""What ends a process that does not end by itself in time."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("freeloop.server")
_LAST_WORDS: Final = 0.3  # seconds at most, to write what was logged
_LOOK: Final = 0.05  # seconds between two looks whether a second signal came
_MAIN: Final = threading.main_thread()


class Overdue:
    """Ends the process with exit code 0 when the total time of a shutdown is over.

    A thread, since the loop itself may be what hangs, or what is left may be threads of the app, which nobody
    can stop. What still runs is logged with the stacks of all threads.

    Args:
        seconds: From the signal, or what else has begun the shutdown, to the end.
        flush: Called before the end, so that the log is written.
    """

    def __init__(self, seconds: float, flush: Callable[[], None]) -> None:
        self._seconds = seconds - min(_LAST_WORDS, seconds / 10)
        self._flush = flush
        # A signal handler may interrupt anything; this queue, unlike locks and new threads, bears it.
        self._begun: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._signals = 0
        self._done = threading.Event()
        threading.Thread(target=self._watch, name="freeloop-overdue", daemon=True).start()

    def begin(self) -> None:
        """Begin to count, where it has not begun."""
        self._begun.put(True)

    def heed_signal(self) -> None:
        """Begin to count; at the second signal, wait for threads no longer. For signal handlers."""
        self._signals += 1
        self.begin()

    def stop(self) -> None:
        """Watch no longer."""
        self._done.set()
        self._begun.put(False)

    def wait_for_threads(self) -> None:
        """Wait for what Python's own exit would wait for, without end: the app's threads that still run.

        To be called once the loop has closed. Where they take too long, it does not return.
        """
        told = False
        while threads := [each for each in threading.enumerate() if not each.daemon and each is not _MAIN]:
            if not told:
                logger.info("all has closed, threads still run", extra={"threads": len(threads)})
                told = True
            if self._signals > 1:
                self._end("a second signal came: the process ends before its threads")
            threads[0].join(_LOOK)
        self.stop()

    def _watch(self) -> None:
        if self._begun.get() and not self._done.wait(self._seconds):
            self._end("the shutdown took longer than FREELOOP_SHUTDOWN_TIMEOUT: the process ends now")

    def _end(self, why: str) -> None:
        stacks = "".join(
            f"Thread {ident}:\n{''.join(traceback.format_stack(frame)[-8:])}"
            for ident, frame in sys._current_frames().items()
            if ident != threading.get_ident()
        )
        logger.error(why, extra={"seconds": self._seconds, "stacks": stacks})
        # By another thread: who reads our output may have stopped, and a write to a full pipe never ends.
        last = threading.Thread(target=self._say_last_words, daemon=True)
        last.start()
        last.join(_LAST_WORDS)
        os._exit(0)

    def _say_last_words(self) -> None:
        self._flush()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
