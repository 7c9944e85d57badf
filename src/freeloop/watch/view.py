"""What the loop runs at one moment, with the frames themselves: to be let go of soon."""

from __future__ import annotations

import asyncio
import sys
from types import CodeType, FrameType
from typing import NamedTuple

from freeloop.watch.blame import Blamed, blame_task
from freeloop.watch.stack import Stack, read_stack, read_threads


class View(NamedTuple):
    """What the loop runs.

    Attributes:
        stack: Its lines, the innermost first; empty: nothing.
        frames: Its frames, which run on.
        lasti: Where the innermost of them was.
        running: The task, or the frame of a bare callback; None: nothing.
        blamed: As of a sample.
        threads: What all threads ran, where that was asked for.
    """

    stack: Stack
    frames: tuple[FrameType, ...]
    lasti: int
    running: object
    blamed: Blamed | None
    threads: dict[int, Stack]


def take_view(
    loop: asyncio.AbstractEventLoop,
    boundary: CodeType,
    thread: int,
    *,
    handler: CodeType,
    threads: bool = False,
) -> View:
    """Look at a loop.

    Args:
        loop: The loop.
        boundary: The code that it calls callbacks from.
        thread: The ident of its thread.
        handler: As of :func:`freeloop.watch.stack.read_stack`.
        threads: Whether to read what all threads run too.
    """
    current = sys._current_frames()
    stack, frames = read_stack(current.get(thread), boundary, handler)
    task = asyncio.current_task(loop) if frames else None
    return View(
        stack,
        frames,
        frames[0].f_lasti if frames else 0,
        task or (frames[-1] if frames else None),
        blame_task(task, frames),
        read_threads(current) if threads else {},
    )
