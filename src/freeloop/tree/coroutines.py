"""Where a coroutine stands: the chain of what it awaits, from the outermost to the innermost.

Only attributes that Python documents are read, and the garbage collector's view of objects for those that
have none (the awaitables of asynchronous generators, up to 3.13). Nothing here runs other people's code.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

from freeloop.tree.model import Place

_DEEPEST: Final = 200  # awaits in each other that are shown; the innermost ones of a longer chain
# Awaitables of the interpreter that pass on to something with a frame.
_WRAPPERS: Final = frozenset(
    {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
)
_PREFIXES: Final = ("cr", "gi", "ag")  # also of compiled coroutines, as Cython makes them
_NEXT: Final = {"cr": "cr_await", "gi": "gi_yieldfrom", "ag": "ag_await"}


class Step:
    """One coroutine, generator or asynchronous generator in a chain.

    Attributes:
        coroutine: The object itself.
        frame: Its frame.
    """

    __slots__ = ("coroutine", "frame")

    def __init__(self, coroutine: Any, frame: FrameType) -> None:  # noqa: ANN401 - of many types
        self.coroutine = coroutine
        self.frame = frame

    @property
    def code(self) -> CodeType:
        """Its code."""
        return self.frame.f_code

    @property
    def module(self) -> str:
        """The name of the module whose code it runs."""
        name: str = self.frame.f_globals.get("__name__", "")
        return name

    @property
    def local(self) -> Mapping[str, Any]:
        """Its variables.

        Up to Python 3.12 they are copied to a dictionary that lives as long as the frame: to be read of
        functions that we know, and never of the app's, whose objects would live longer for it.
        """
        return self.frame.f_locals

    @property
    def referents(self) -> list[Any]:
        """What it refers to: its variables, and the ``async with`` blocks that it is in the middle of."""
        return gc.get_referents(self.coroutine)


def walk(coroutine: Any) -> list[Step]:  # noqa: ANN401 - of many types
    """Return the chain of what a suspended coroutine awaits, the outermost first."""
    steps: list[Step] = []
    awaited = coroutine
    while awaited is not None:
        kind = type(awaited)
        if kind is CoroutineType:
            frame, following = awaited.cr_frame, awaited.cr_await
        elif kind is GeneratorType:
            frame, following = awaited.gi_frame, awaited.gi_yieldfrom
        elif kind is AsyncGeneratorType:
            frame, following = awaited.ag_frame, awaited.ag_await
        elif kind.__name__ in _WRAPPERS:
            awaited = _unwrap(awaited)
            continue
        else:
            frame, following = _look_into(awaited)
        if frame is not None:
            steps.append(Step(awaited, frame))
        if len(steps) > 2 * _DEEPEST:
            del steps[:_DEEPEST]
        awaited = following
    return steps[-_DEEPEST:]


def _look_into(awaited: Any) -> tuple[FrameType | None, Any]:  # noqa: ANN401 - of many types
    for prefix in _PREFIXES:
        frame = getattr(awaited, f"{prefix}_frame", None)
        if isinstance(frame, FrameType):
            return frame, getattr(awaited, _NEXT[prefix], None)
    return None, None  # a future's iterator, or of a type that tells nothing


def _unwrap(wrapper: Any) -> Any:  # noqa: ANN401 - of many types
    for inner in gc.get_referents(wrapper):
        if isinstance(inner, CoroutineType | GeneratorType | AsyncGeneratorType):
            return inner
        if type(inner).__name__ in _WRAPPERS:
            return inner
    return None


class Places:
    """Makes each place once: thousands of tasks stand at a few lines."""

    def __init__(self) -> None:
        # By the code's identity, since its hash goes over all of its bytes; the code is kept, so that no
        # other one can come to have the same.
        self._known: dict[tuple[int, int], tuple[CodeType, Place]] = {}

    def of(self, frame: FrameType) -> Place:
        """Return where a frame stands."""
        code, line = frame.f_code, frame.f_lineno or 0
        known = self._known.get((id(code), line))
        if known is None:
            place = Place(code.co_filename, line, code.co_qualname, frame.f_globals.get("__name__", ""))
            known = self._known[id(code), line] = (code, place)
        return known[1]

    def of_thread(self, ident: int) -> tuple[Place, ...]:
        """Return where a thread stands, the outermost line first."""
        frame = sys._current_frames().get(ident)
        places: list[Place] = []
        while frame is not None and len(places) < _DEEPEST:
            places.append(self.of(frame))
            frame = frame.f_back
        return tuple(reversed(places))
