"""Who looks, and from where: on the loop in slices, or from another thread where the loop hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self

from freeloop.tree.capture import Capture
from freeloop.tree.model import Snapshot
from freeloop.tree.sightings import Sightings

_SLICE: Final = 0.002  # seconds that the loop is held at a time
_SWEEP: Final = 5.0  # seconds between two sweeps, and so how exact "at least" is
_PATIENCE: Final = 1.0  # seconds without an answer after which a loop is taken for hung


class Tree:
    """Answers what the tasks of one loop wait for. Make it where the loop runs.

    While it is open it looks every 5 s which waits are new, so that it knows later since when they are.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._sightings = Sightings()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._looking = threading.Lock()

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(_SWEEP, self._sweep)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def look(self, *, patience: float = _PATIENCE) -> Snapshot:
        """Return what all tasks wait for. Blocks: to be called in another thread than the loop's.

        Args:
            patience: Seconds without an answer after which the loop is taken for hung, and read from here.
        """
        with self._looking, _without_collection():
            return self._look(patience)

    def _look(self, patience: float) -> Snapshot:
        capture = Capture(self._loop, self._sightings)
        slices = Slices(self._loop, capture.steps())
        if not slices.run(patience):
            capture = Capture(self._loop, self._sightings, hung=True, loop_thread=self._thread)
            for _ in capture.steps():
                pass
        return capture.finish()

    def answer(self, question: Mapping[str, Any]) -> Iterator[bytes]:
        """Answer a question that came by the socket of :mod:`freeloop.inspection`."""
        del question
        with self._looking, _without_collection():
            # Rendered at once: a snapshot is many objects, and the collector would look through all of them.
            lines = list(self._look(_PATIENCE).lines())
        yield from lines

    def _sweep(self) -> None:
        sweep = self._sightings.sweep(asyncio.all_tasks(self._loop), time.monotonic())
        Slices(self._loop, sweep, then=self._rest).begin()

    def _rest(self) -> None:
        if not self._closed:
            self._timer = self._loop.call_later(_SWEEP, self._sweep)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from running within the block.

    Of what a look makes nearly all is gone at its end. The collector would count it as if it stayed, and look
    at all objects of the process, which holds the loop for far longer than a slice.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Slices:
    """Runs steps on a loop, a few at a time: whatever else is due comes in between.

    Args:
        loop: The loop.
        steps: The steps.
        then: Called on the loop after the last one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        steps: Iterator[None],
        then: Any = None,  # noqa: ANN401
    ) -> None:
        self._loop = loop
        self._steps = steps
        self._then = then
        self._over = threading.Event()
        self._given_up = False
        self._error: Exception | None = None
        self._count = 0

    def run(self, patience: float) -> bool:
        """Run them from another thread; return False where the loop did none for ``patience`` seconds.

        Raises:
            Exception: What a step has raised.
        """
        try:
            self._loop.call_soon_threadsafe(self.begin)
        except RuntimeError:  # the loop has closed
            return False
        count = -1
        while not self._over.wait(patience):
            if count == self._count:
                self._given_up = True
                return False
            count = self._count
        if self._error is not None:
            raise self._error
        return True

    def begin(self) -> None:
        """Run them as far as one slice goes; the loop runs the rest."""
        self._count += 1
        until = time.perf_counter() + _SLICE
        try:
            for _ in self._steps:
                if self._given_up:
                    return
                if time.perf_counter() >= until:
                    self._loop.call_soon(self.begin)
                    return
        except Exception as error:  # noqa: BLE001 - told to whoever waits; the loop has nothing to do with it
            self._error = error
        self._over.set()
        if self._then is not None:
            self._then()
