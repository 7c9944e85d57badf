"""Work that may outlive the request that started it: held, counted, logged, waited for at shutdown.

It lives in this process only. What must survive a crash is a durable task instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from freeloop.scope import Scope, choose_request_id, current_scope, name_of

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("freeloop.background")


class Background:
    """The background executions of one app.

    Attributes:
        failed: How many have failed so far.
        cut: Whether all were cancelled; what is started from then on is so too.
    """

    def __init__(self) -> None:
        self.cut = False
        self._running: dict[asyncio.Task[Any], Scope] = {}
        self.failed = 0

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
        if self.cut:
            scope.cause = "shutdown"
        task = asyncio.get_running_loop().create_task(_run(scope, coroutine), name=scope.route)
        self._running[task] = scope
        task.add_done_callback(self._forget)
        return task

    def cancel(self) -> None:
        """Cancel all, and what may still be started."""
        self.cut = True
        for scope in self._running.values():
            scope.cancel("shutdown")

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until all have ended, those started meanwhile included; return whether they have.

        Args:
            seconds: How long at most; None: as long as it takes.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._running:
                    await asyncio.wait(list(self._running))
        except TimeoutError:
            return False
        return True

    def _forget(self, task: asyncio.Task[Any]) -> None:
        scope = self._running.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed += 1
            logger.error(
                "background execution failed",
                extra={"function": scope.route, "request_id": scope.id},
                exc_info=error,
            )


async def _run(scope: Scope, coroutine: Coroutine[Any, Any, T]) -> T:
    scope.enter()
    if scope.cause is not None:  # cancelled before it began
        scope.cancel(scope.cause)
    try:
        return await coroutine
    finally:
        await scope.end_children()
        scope.leave()
