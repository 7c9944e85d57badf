"""A pool of threads that is bounded, and true to its count also when callers leave."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from freeloop.errors import ThreadsBusy
from freeloop.scope import borrow, current_scope, is_apps, limit_wait, name_of, note_thread, spend

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("freeloop.threads")


class ThreadPool:
    """Runs sync functions in threads, at most ``size`` at once.

    A limit of its own keeps slow sync code from using up the threads of others.

    Args:
        name: What the threads are for; named in errors and metrics.
        size: Calls that run at once, 1 or more.
        acquire_timeout: Seconds that a call waits for a free thread, or until its deadline.
        setting: The setting that raises ``size``, named in errors; empty: there is none.
    """

    def __init__(
        self, name: str, *, size: int = 40, acquire_timeout: float = 10.0, setting: str = ""
    ) -> None:
        self.name = name
        self.size = size
        self.acquire_timeout = acquire_timeout
        self._setting = setting
        self._free = asyncio.Semaphore(size)
        self._unlimited = anyio.CapacityLimiter(math.inf)
        self._in_use = 0
        self._waiting = 0

    @property
    def in_use(self) -> int:
        """Threads that run a function now, also those whose caller has gone."""
        return self._in_use

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._waiting

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in a thread and return its result.

        A thread cannot be stopped from outside. A cancelled caller leaves at once, but the thread counts
        against the limit until the function returns: abandoned work must not add up. It is logged with its
        stack.

        Raises:
            ThreadsBusy: No thread came free within ``acquire_timeout`` (503).
        """
        await self._acquire()
        call = _Call(function, args, kwargs, self._give_back)
        self._in_use += 1
        try:
            with borrow("thread", self.name), spend("thread"):
                return await anyio.to_thread.run_sync(
                    call.run, abandon_on_cancel=True, limiter=self._unlimited
                )
        except BaseException as error:
            if call.withdraw():
                self._give_back()
            elif isinstance(error, asyncio.CancelledError):
                call.report(self.name)
            raise

    async def _acquire(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        seconds = limit_wait(self.acquire_timeout)
        self._waiting += 1
        try:
            with spend("thread-wait"):
                async with asyncio.timeout(seconds):
                    await self._free.acquire()
        except TimeoutError:
            remedy = f"Raise {self._setting} or make" if self._setting else "Make"
            raise ThreadsBusy(
                f"no thread of '{self.name}' came free within {seconds:.3g} s "
                f"({self.size} of {self.size} busy). {remedy} the calls shorter."
            ) from None
        finally:
            self._waiting -= 1

    def _give_back(self) -> None:
        self._in_use -= 1
        self._free.release()


def _ended() -> None:
    """Stand in for the function of a call that is over."""


class _Call:
    """One call on its way to a thread.

    Whoever takes the ticket answers for the place in the pool: the thread once it runs, or the caller who
    was cancelled first. ``list.pop`` is atomic, so never both.
    """

    __slots__ = ("_args", "_function", "_give_back", "_ident", "_kwargs", "_loop", "_ticket")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        give_back: Callable[[], None],
    ) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._give_back = give_back
        self._loop = asyncio.get_running_loop()
        self._ticket = [True]
        self._ident: int | None = None

    def run(self) -> Any:  # noqa: ANN401 - what the function returns
        if not self.withdraw():
            raise RuntimeError("abandoned before it began")  # nobody awaits it any more
        self._ident = threading.get_ident()
        note_thread()
        try:
            return self._function(*self._args, **self._kwargs)
        finally:
            self._ident = None
            # The idle thread holds on to its last call: what that was given (a half-read generator, an open
            # file) is to end with it.
            self._args, self._kwargs = (), {}
            self._function = _ended
            with suppress(RuntimeError):  # the loop has closed: nobody waits for the place
                self._loop.call_soon_threadsafe(self._give_back)

    def withdraw(self) -> bool:
        """Take the ticket; whether it was still there."""
        try:
            return self._ticket.pop()
        except IndexError:
            return False

    def report(self, pool: str) -> None:
        """Log where the thread stands that nobody waits for any more."""
        ident, function = self._ident, self._function
        frame = sys._current_frames().get(ident) if ident is not None else None
        if frame is None:
            return
        scope = current_scope()
        stack = [found for found, _ in traceback.walk_stack(frame)]
        # The framework wraps the functions of routes: the outermost frame of the app's own names it.
        apps = next((found for found in reversed(stack) if is_apps(found)), None)
        logger.warning(
            "a thread outlives its caller",
            extra={
                "function": name_of(function)
                if apps is None
                else f"{apps.f_globals.get('__name__', '?')}.{apps.f_code.co_qualname}",
                "pool": pool,
                "request_id": scope.id if scope is not None else "-",
                "cause": scope.cause if scope is not None else None,
                "stack": "".join(traceback.format_stack(frame)[-5:]),
            },
        )
