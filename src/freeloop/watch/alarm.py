"""An alarm that one thread sleeps until, and that others may put off without waking it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from typing import Final

from freeloop.watch.cpu_timer import make_setting

_LINUX: Final = sys.platform == "linux"
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_POLL: Final = 0.02  # seconds between two looks at the time, where the kernel has no such timer


class Alarm:
    """Goes off once, and again each time it was set anew.

    On Linux it is a timer of the kernel: who sleeps until it does not notice that it was put off.

    Attributes:
        at: When it goes off, or did, in seconds of :func:`time.monotonic`.
    """

    def __init__(self) -> None:
        self.at = 0.0  # not before it was set
        self._was = self.at  # when it went off last
        self._closed = threading.Event()
        self._timer: int | None = None
        if _LINUX:
            self._libc = ctypes.PyDLL(None, use_errno=True)
            timer = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
            self._timer = timer if timer >= 0 else None

    def set(self, at: float) -> None:
        """Let it go off then, also if it has gone off before."""
        self.at = at
        if self._timer is None:
            return
        done = None
        while done != (at := self.at):  # another thread may have set it in between
            setting = make_setting(max(at, 1e-9))  # what is past goes off at once, but 0 would stop it
            self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(setting), None)
            done = at

    def put_off(self, at: float) -> bool:
        """Let it go off then; False: it has gone off, and whoever sleeps until it is to know of that."""
        if time.monotonic() >= self.at:
            return False
        self.set(max(at, self.at))
        return True

    def wait(self) -> bool:
        """Sleep until it goes off, in one thread; False: it was closed."""
        if self._timer is not None:
            os.read(self._timer, 8)
        else:
            while (self.at == self._was or self.at > time.monotonic()) and not self._closed.wait(_POLL):
                pass
            self._was = self.at
        return not self._closed.is_set()

    def wake(self) -> None:
        """Let whoever sleeps until it know that it is closed; to be called before :meth:`close`."""
        self._closed.set()
        self.set(0.0)

    def close(self) -> None:
        """Give the timer back; nobody may wait any more."""
        if self._timer is not None:
            os.close(self._timer)
            self._timer = None
