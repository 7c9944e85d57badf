"""A timer on the CPU clock of one thread (Linux): its signal comes once that thread has computed for so long.

Not while it waits, nor while the process is stopped or has no CPU: whoever sets it anew meanwhile, on however
crowded a machine, is never told of a time in which nothing happened.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

_TO_THREAD: Final = 4  # SIGEV_THREAD_ID


class _Event(ctypes.Structure):
    """The beginning of struct sigevent, and room for the rest of its 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class _Setting(ctypes.Structure):
    """Struct itimerspec."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every", "every_ns", "after", "after_ns"))


def make_setting(seconds: float) -> ctypes.Structure:
    """Return what the kernel's timers are set with, to go off once; 0 stops them."""
    return _Setting(0, 0, int(seconds), int(seconds % 1 * 1e9))


class CpuTimer:
    """The timer of the thread that makes it.

    Args:
        number: The signal that it sends to that thread, and to no other.

    Raises:
        OSError: There is none on this platform, or the kernel gives none.
    """

    def __init__(self, number: signal.Signals) -> None:
        self._libc = ctypes.PyDLL(None, use_errno=True)
        if sys.platform != "linux" or not hasattr(self._libc, "timer_create"):
            raise OSError(f"expected Linux with timer_create, got {sys.platform}")
        event = _Event(None, number, _TO_THREAD, threading.get_native_id())
        clock = time.pthread_getcpuclockid(threading.get_ident())
        self._timer = ctypes.c_void_p()
        if self._libc.timer_create(clock, ctypes.byref(event), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def arm(self, seconds: float) -> None:
        """Let it go off once the thread has computed for so many seconds, in place of what was set; 2 µs.

        0 stops it.
        """
        setting = make_setting(seconds)
        self._libc.timer_settime(self._timer, 0, ctypes.byref(setting), None)

    def close(self) -> None:
        """Give it back; what it has sent comes before this returns."""
        self._libc.timer_delete(self._timer)
