"""Stacks as plain lines: what was running, without holding on to it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from types import CodeType, FrameType
from typing import Final, NamedTuple, TypeAlias


class Line(NamedTuple):
    """One frame of a stack.

    Attributes:
        file: The path of its file.
        line: The line that runs.
        function: The qualified name of its function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Write it as leases do: ``file:line in function``."""
        return f"{self.file}:{self.line} in {self.function}"

    def is_of(self, function: Line) -> bool:
        """Return whether two lines are of one function; the C timer knows no qualified names."""
        mine, theirs = (each.function.rpartition(".")[2] for each in (self, function))
        return self.file == function.file and mine == theirs


Stack: TypeAlias = tuple[Line, ...]
"""The innermost line first."""

_DEEPEST: Final = 200


def read_stack(
    frame: FrameType | None, boundary: CodeType, handler: CodeType
) -> tuple[Stack, tuple[FrameType, ...]]:
    """Return what the loop runs at a frame, up to the loop itself, and the frames; empty: it runs nothing.

    Args:
        frame: The innermost frame of the loop's thread.
        boundary: The code that the loop calls callbacks from.
        handler: The code of our signal handler, which runs on top of what it is about.
    """
    frames: list[FrameType] = []
    while frame is not None and frame.f_code is not boundary:
        frames.append(frame)
        if frame.f_code is handler:
            frames.clear()
        frame = frame.f_back
    if frame is None:  # it is the loop's own bookkeeping, or it waits
        frames.clear()
    return to_lines(frames), tuple(frames)


def read_threads(current: Mapping[int, FrameType]) -> dict[int, Stack]:
    """Return the whole stacks of threads, by ident.

    Args:
        current: As of :func:`sys._current_frames`.
    """
    return {ident: _read_whole(frame) for ident, frame in current.items()}


def _read_whole(frame: FrameType | None) -> Stack:
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return to_lines(frames)


def to_lines(frames: list[FrameType]) -> Stack:
    """Return the lines of frames; of a very deep stack the innermost ones."""
    return tuple(
        Line(
            frame.f_code.co_filename, frame.f_lineno or frame.f_code.co_firstlineno, frame.f_code.co_qualname
        )
        for frame in islice(frames, _DEEPEST)
    )
