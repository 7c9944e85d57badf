"""The stack of a loop while no other Python runs: a C function holds the GIL, and no sampler gets to run.

A timer on the CPU clock of the loop's thread is set anew for as long as the watchdog's thread gets to run.
Once that does not, the timer goes off, and :mod:`faulthandler` writes, in a signal handler of the loop's own
thread, where that stands. It must not do so while that thread runs Python, whose frames it would read half
made and crash the process, and of no other thread: ``dump_traceback_later``, or a timer on the wall clock,
does where a machine is busy, throttled or was stopped. A thread that runs Python lets the watchdog in long
before it has computed for as long as this timer waits.

The same signal has Python call a function, before anything else that the loop's thread runs once it has the
GIL again: what was running, and for whom, has not moved on by then.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from freeloop.watch.cpu_timer import CpuTimer
from freeloop.watch.stack import Line, Stack

_NAME: Final = "freeloop-blocked"
_MOST: Final = 1_000_000  # bytes
_BEGIN: Final = "Stack (most recent call first):"
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_taken: Final = threading.Lock()  # the signal belongs to the process


class Dump(NamedTuple):
    """What was written when the timer went off.

    Attributes:
        at: When, in seconds of :func:`time.monotonic`, to within the tick of the kernel's clock of files.
        stack: What the loop's thread ran, the innermost line first.
    """

    at: float
    stack: Stack


class Backstop:
    """The timer, for a loop in the main thread on Linux; does nothing elsewhere, or where others use SIGALRM.

    Whoever sets a handler of its own for SIGALRM later on keeps it: the next heartbeat stops the timer.

    To be made and closed in the loop's thread.

    Args:
        catch: Called with the signal and the frame that runs, in the loop's thread, as soon as that can run
            Python after the timer went off. It must not raise: that would come out of any line of the app.
    """

    def __init__(self, catch: Callable[[int, FrameType | None], None]) -> None:
        self._catch = catch
        self._mine = (
            hasattr(os, "memfd_create")
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
            and not signal.getitimer(signal.ITIMER_REAL)[0]
            and _taken.acquire(blocking=False)
        )
        if not self._mine:
            return
        try:
            self._timer = CpuTimer(signal.SIGALRM)
        except OSError:
            self._mine = False
            _taken.release()
            return
        # In memory; others see it by its name, in the folder of the process's files.
        self._file = os.memfd_create(_NAME)
        # The timer writes where the file ends, also after it was cut.
        import fcntl  # noqa: PLC0415 - not there on Windows, where this is not used

        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) | os.O_APPEND)
        signal.signal(signal.SIGALRM, catch)
        faulthandler.register(signal.SIGALRM, file=self._file, all_threads=False, chain=True)

    def arm(self, seconds: float) -> None:
        """Let it go off once the loop's thread has computed for so long, in place of what was planned."""
        if self._mine:
            self._timer.arm(seconds if self._is_ours() else 0.0)

    def take(self) -> Dump | None:
        """Return what was written since the last time; to be armed anew before, or it may write just now."""
        if not self._mine or not (size := os.fstat(self._file).st_size):
            return None
        # The clock of files is the wall clock, which may be set: only the time passed is of use.
        age = time.time() - os.fstat(self._file).st_mtime
        text = os.pread(self._file, min(size, _MOST), 0).decode("utf-8", "replace")
        os.ftruncate(self._file, 0)
        return Dump(time.monotonic() - max(0.0, age), parse(text))

    def close(self) -> None:
        """Give the timer back; idempotent."""
        if self._mine:
            self._mine = False
            # What has gone off meanwhile comes to this thread before the call returns.
            self._timer.close()
            theirs = None if self._is_ours() else signal.getsignal(signal.SIGALRM)
            faulthandler.unregister(signal.SIGALRM)  # puts back what was there when it was registered
            signal.signal(signal.SIGALRM, signal.SIG_DFL if theirs is None else theirs)
            os.close(self._file)
            _taken.release()

    def _is_ours(self) -> bool:
        return signal.getsignal(signal.SIGALRM) is self._catch


def find_file(pid: int) -> Path | None:
    """Return where the timer of another process writes, which can be read while that process hangs (Linux).

    Raises:
        PermissionError: It is the process of another user.
    """
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if _NAME in str(link.readlink()):
                return link
        except FileNotFoundError:  # closed meanwhile
            continue
    return None


def parse(text: str) -> Stack:
    """Read the last stack that :mod:`faulthandler` has written."""
    rows = text.rpartition(_BEGIN)[2].splitlines()
    return tuple(
        Line(_unescape(frame[1]), int(frame[2]), _unescape(frame[3]))
        for row in rows
        if (frame := _FRAME.match(row))
    )


def _unescape(text: str) -> str:
    """Undo the escapes in which it writes what is not ASCII."""
    return re.sub(
        r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})",
        lambda found: chr(int(found[1] or found[2] or found[3], 16)),
        text,
    )
