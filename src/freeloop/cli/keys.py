"""Keys that are pressed while a command shows something live. Not there on Windows: imported late."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType
from typing import Self


class Keys:
    """Reads keys as they are pressed, unseen; afterwards the terminal is as it was.

    Ctrl-C raises ``KeyboardInterrupt``, and is a ``q`` at the next wait where that was lost: Python ignores
    what is raised while it destroys an object.
    """

    def __enter__(self) -> Self:
        self._interrupted = False
        self._handler = signal.signal(signal.SIGINT, self._interrupt)
        self._file = sys.stdin.fileno() if sys.stdin.isatty() else None
        if self._file is not None:
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if self._file is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """Return a key that was pressed; empty: none was in that time."""
        if self._interrupted:
            return "q"
        if self._file is None:  # nobody types
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._file], [], [], seconds)
        # Nothing to read: the terminal has gone.
        return (os.read(self._file, 1).decode("ascii", "replace") or "q") if ready else ""

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt
