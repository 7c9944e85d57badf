"""Work that may outlive the request that started it: held, counted, logged, waited for at shutdown.

It lives in this process only. What must survive a crash is a durable task instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, ParamSpec, TypeVar

from freeloop.scope import Scope, choose_request_id, current_scope, name_of

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("freeloop.background")


class Background:
    """The background executions of one app.

    Args:
        cleanup_timeout: Seconds that the clean-up of child tasks may take before they are cancelled again.

    Attributes:
        failed: How many have failed so far.
        cut: Whether all were cancelled; what is started from then on is so too.
    """

    def __init__(self, *, cleanup_timeout: float = 5.0) -> None:
        self.cut = False
        self._cleanup_timeout = cleanup_timeout
        self._running: dict[Scope, asyncio.Task[Any]] = {}
        self.failed = 0

    def __contains__(self, scope: object) -> bool:
        return scope in self._running

    def __iter__(self) -> Iterator[Scope]:
        return iter(tuple(self._running))

    def __len__(self) -> int:
        return len(self._running)

    def start(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        """Start an async function in a scope of its own, with the id of the scope that starts it.

        The deadline and the cancellation of that scope do not reach it. A failure is logged and stops
        nothing else.

        Raises:
            TypeError: The function is not async.
        """
        parent = current_scope()
        scope = Scope(parent.id if parent else choose_request_id(None, None), route=name_of(function))
        coroutine = function(*args, **kwargs)
        if not asyncio.iscoroutine(coroutine):
            raise TypeError(f"spawn expects an async function; {name_of(function)} is none")
        if parent:
            scope.wrote, scope.trace = parent.wrote, parent.trace
        if self.cut:
            scope.cause = "shutdown"
        task = asyncio.get_running_loop().create_task(self._run(scope, coroutine), name=scope.route)
        self._running[scope] = task
        task.add_done_callback(partial(self._forget, scope))
        return task

    def cancel(self) -> None:
        """Cancel all, and what may still be started."""
        self.cut = True
        for scope in self._running:
            scope.cancel("shutdown")

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until all have ended, those started meanwhile included; return whether they have.

        Args:
            seconds: How long at most; None: as long as it takes.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._running:
                    await asyncio.wait(list(self._running.values()))
        except TimeoutError:
            return False
        return True

    async def _run(self, scope: Scope, coroutine: Coroutine[Any, Any, T]) -> T:
        scope.enter()
        if scope.cause is not None:  # cancelled before it began
            scope.cancel(scope.cause)
        try:
            return await coroutine
        finally:
            await scope.end_children(self._cleanup_timeout)
            scope.leave()

    def _forget(self, scope: Scope, task: asyncio.Task[Any]) -> None:
        del self._running[scope]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed += 1
            logger.error(
                "background execution failed",
                extra={"function": scope.route, "request_id": scope.id},
                exc_info=error,
            )
