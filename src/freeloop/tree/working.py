"""Which thread works on what a task waits for."""

from __future__ import annotations

import sys
import threading
from types import FrameType


def list_working() -> dict[int, int]:
    """Return the thread that runs each call of an executor, by the future that it will set."""
    found: dict[int, int] = {}
    frames = sys._current_frames()
    del frames[threading.get_ident()]  # ours, which would refer to itself
    for ident, innermost in frames.items():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code.co_qualname == "_WorkItem.run":
                found[id(frame.f_locals["self"].future)] = ident
            frame = frame.f_back
    return found


def name_thread(ident: int) -> str:
    """Return the name of a thread."""
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), "a thread")
