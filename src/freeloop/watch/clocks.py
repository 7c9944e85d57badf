"""What each thread has used of the CPU, and for how long it had to wait for one.

Nothing here lets go of the GIL: whoever took it might hold it, and what was read before would be told of a
time that had passed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

_LINUX: Final = sys.platform == "linux"
_pread: Final = ctypes.PyDLL(None).pread if _LINUX else None  # os.pread lets go of the GIL
_COUNTS_SLEEPS: Final = hasattr(resource, "RUSAGE_THREAD")  # Linux


class Reading(NamedTuple):
    """The clocks at one moment, all in seconds.

    Attributes:
        at: When, of :func:`time.monotonic`.
        process: CPU time of the process.
        waited: For how long the watchdog's thread was ready to run and had no CPU, so far.
        delayed: The same of the loop's thread.
        threads: CPU time of each Python thread, by its ident.
        sleeps: How often the thread that read them has gone to sleep so far.
    """

    at: float
    process: float
    waited: float
    delayed: float
    threads: Mapping[int, float]
    sleeps: int


class RunQueue:
    """How long a thread waits for a CPU, under CPU quotas too; outside of Linux it is 0.

    Args:
        thread: The kernel's number of it.
    """

    def __init__(self, thread: int) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)

    def read(self) -> float:
        """Return for how many seconds it was ready to run and had no CPU, so far; in any thread."""
        if self._file is None or _pread is None:
            return 0.0
        counts = ctypes.create_string_buffer(64)
        _pread(self._file, counts, len(counts), 0)
        try:
            return int(counts.value.split()[1]) / 1e9
        except (ValueError, IndexError):  # the thread has ended
            return 0.0

    def close(self) -> None:
        """Let go of the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def read_clocks(watchdog: RunQueue, loop: RunQueue) -> Reading:
    """Read all; 10 µs, and 1 µs for each thread."""
    threads = {}
    if _LINUX:
        for thread in threading.enumerate():
            if thread.ident is not None and thread.native_id is not None:
                # The kernel's own number for the CPU clock of a thread (CPUCLOCK_PERTHREAD_MASK and
                # CPUCLOCK_SCHED). pthread_getcpuclockid would read freed memory of a thread that has ended.
                with contextlib.suppress(OSError):
                    threads[thread.ident] = time.clock_gettime((~thread.native_id << 3) | 6)
    waited, delayed, process = watchdog.read(), loop.read(), time.process_time()
    return Reading(time.monotonic(), process, waited, delayed, threads, count_sleeps())


def count_sleeps() -> int:
    """Return how often the thread that asks has gone to sleep so far; 0 where that is not counted."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw if _COUNTS_SLEEPS else 0
