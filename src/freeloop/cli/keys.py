"""Keys that are pressed while a command shows something live. Not there on Windows: imported late."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from typing import Self


class Keys:
    """Reads keys as they are pressed, unseen; afterwards the terminal is as it was."""

    def __enter__(self) -> Self:
        self._file = sys.stdin.fileno() if sys.stdin.isatty() else None
        if self._file is not None:
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """Return a key that was pressed; empty: none was in that time."""
        if self._file is None:  # nobody types
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._file], [], [], seconds)
        # Nothing to read: the terminal has gone.
        return (os.read(self._file, 1).decode("ascii", "replace") or "q") if ready else ""
