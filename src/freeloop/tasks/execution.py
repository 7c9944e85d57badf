"""One execution of a task: a scope, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias
from uuid import UUID

import orjson

from freeloop.database import Transaction
from freeloop.errors import TaskCancelled, TaskLost
from freeloop.scope import Cause, Scope, choose_request_id, current_scope, read_trace
from freeloop.tasks import store
from freeloop.tasks.declare import Task
from freeloop.tasks.engine import Engine
from freeloop.tasks.limits import free
from freeloop.tasks.model import State
from freeloop.tasks.payload import PayloadRefused, ResultRefused
from freeloop.tasks.store import Begun, Ending
from freeloop.threads import ThreadPool

Next: TypeAlias = Callable[[], Awaitable[Any]]
"""What a middleware calls to go on; it returns the task's result."""

Middleware: TypeAlias = Callable[["Execution", Next], Awaitable[Any]]
"""Called around each execution: ``await call_next()`` runs it and returns its result."""

logger = logging.getLogger("freeloop.tasks")

_LONGEST_TRACEBACK: Final = 20_000
_LONGEST_MESSAGE: Final = 5_000


class Execution(Scope):
    """The scope of a task that runs.

    Attributes:
        task: Which one.
        task_id: Its id; ``id`` is that of the request that started it.
        attempt: Which execution of it this is, from 1.
        worker: Who runs it.
        limited: Whether it runs under a limit that others may wait for.
        cancelled_at: When it was last cancelled.
        over: Whether the function has ended.
        dirty: Whether its progress is to be written.
    """

    cancelled_at: float = 0.0
    over: bool = False
    dirty: bool = False

    def __init__(
        self, task: Task[..., Any], begun: Begun, worker: UUID, engine: Engine, *, limited: bool = False
    ) -> None:
        super().__init__(
            begun.request_id or choose_request_id(None, None),
            kind="task",
            route=task.name,
            seconds=task.options.timeout,
        )
        self.task = task
        self.task_id = begun.id
        self.attempt = begun.attempt
        self.worker = worker
        if begun.traceparent is not None:
            self.trace = read_trace(begun.traceparent.encode(), None)
        self.limited = limited
        self._begun = begun
        self._engine = engine
        self._progress: dict[str, object] | None = None
        self._loop_thread = threading.get_ident()

    @property
    def key(self) -> str | None:
        """What makes the task unique."""
        return self._begun.key

    def cancel(self, cause: Cause) -> None:
        """Cancel it; a plain function runs on until it asks for its progress."""
        self.cancelled_at = time.monotonic()
        if self.task.is_async:
            super().cancel(cause)
        else:
            self.cause = self.cause or cause

    def note_progress(self, done: float, total: float | None, note: str | None) -> None:
        """Note how far it has come; it is written with the next round.

        Raises:
            TaskCancelled: In a thread, which nothing else can tell: it was cancelled.
        """
        if self.cause is not None and threading.get_ident() != self._loop_thread:
            raise TaskCancelled(f"task '{self.route}' {self.task_id} was cancelled: {self.cause}")
        self._progress = {"done": done, "total": total, "note": note}
        self.dirty = True

    def render_progress(self) -> str | None:
        """Return the progress as JSON; None: there is none."""
        return None if self._progress is None else orjson.dumps(self._progress).decode()

    async def complete(self, transaction: Transaction, result: object) -> None:
        """End the task with a result, in a transaction of its own work; see :func:`complete`."""
        await store.plan_anew(transaction)
        # The job first: whoever has that owns the task. Another worker that takes it waits, and finds none.
        if not await self._engine.remove(transaction, [self._begun.job], worker=self.worker):
            raise TaskLost(f"task '{self.route}' {self.task_id} was taken over by another worker")
        if self.limited:
            await free(transaction, self._engine, [self._begun.job])
        ending = self._end("succeeded", result=self.task.payload.encode_result(result))
        if not await store.finish(transaction, [ending]):
            raise TaskLost(f"task '{self.route}' {self.task_id} has ended already, or runs elsewhere")

    async def run(
        self, threads: ThreadPool, middleware: Sequence[Middleware], *, cleanup_timeout: float
    ) -> Ending | None:
        """Run it to its end; None: it is no longer ours, and nothing is to be written."""
        self.enter()
        try:
            if self.cause is not None:  # cancelled before it began
                super().cancel(self.cause)
            return self._succeed(await self._call(threads, middleware))
        except asyncio.CancelledError as error:
            return self._judge(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is the task's, and is kept
            return (
                self._judge(error) if self.cause and isinstance(error, TaskCancelled) else self._fail(error)
            )
        finally:
            self.over = True
            if self._task is not None:
                while self._task.uncancel():
                    pass
            await self.end_children(cleanup_timeout)
            self.leave()

    async def _call(self, threads: ThreadPool, middleware: Sequence[Middleware]) -> Any:  # noqa: ANN401
        arguments = self.task.payload.decode(self._begun.arguments)

        async def innermost() -> Any:  # noqa: ANN401 - what the task returns
            if self.task.is_async:
                return await self.task.function(**arguments)
            return await threads.run(self.task.function, **arguments)

        call: Next = innermost
        for layer in reversed(middleware):
            call = _wrap(layer, self, call)
        return await call()

    def _succeed(self, value: object) -> Ending:
        try:
            return self._end("succeeded", result=self.task.payload.encode_result(value))
        except ResultRefused as error:
            return self._fail(error)

    def _judge(self, error: BaseException) -> Ending | None:
        """Say what a cancellation comes to."""
        match self.cause:
            case "request":
                return self._end("cancelled")
            case "shutdown":
                return self._end("queued")
            case "lost":
                return None
            case "deadline":
                limit = self.task.options.timeout
                return self._fail(
                    TimeoutError(f"it took longer than its timeout of {limit} s").with_traceback(
                        error.__traceback__
                    )
                )
            case _:
                return self._fail(error)

    def _fail(self, error: BaseException) -> Ending:
        pause = None
        if not isinstance(error, PayloadRefused | ResultRefused):
            pause = self.task.options.retry.pause(
                error,
                failures=self._begun.failures + 1,
                dice=random.random(),  # noqa: S311 - chance, no secret
            )
        text = orjson.dumps(
            {
                "type": type(error).__qualname__,
                "message": str(getattr(error, "detail", None) or error)[:_LONGEST_MESSAGE],
                "traceback": "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:],
            }
        ).decode("utf-8", "replace")
        details = {
            "task": self.route,
            "task_id": str(self.task_id),
            "request_id": self.id,
            "attempt": self.attempt,
        }
        if pause is None:
            logger.error("task failed", extra=details, exc_info=error)
            return self._end("failed", error=text, failed=True)
        logger.warning(
            "task failed and is tried again", extra={**details, "after": pause, "error": repr(error)}
        )
        return self._end("queued", error=text, failed=True, delay=pause)

    def _end(self, state: State, **more: Any) -> Ending:  # noqa: ANN401 - the fields of Ending
        return Ending(
            id=self.task_id,
            job=self._begun.job,
            attempt=self.attempt,
            state=state,
            progress=self.render_progress(),
            frees=self.limited or self.task.options.concurrency is not None,
            **more,
        )


def _wrap(layer: Middleware, execution: Execution, call: Next) -> Next:
    return lambda: layer(execution, call)


def current_execution() -> Execution | None:
    """Return the execution that this code runs under, also in child tasks and threads; None outside."""
    scope = current_scope()
    return scope if isinstance(scope, Execution) else None


def progress(done: float, total: float | None = None, note: str | None = None) -> None:
    """Say how far the running task has come. Cheap: the last that was said is written, three times a second.

    In a plain function it is also where a cancellation arrives. Outside a task it does nothing.

    Args:
        done: How much is done, in any unit.
        total: Of how much; None: not known.
        note: What it is at, for people.

    Raises:
        TaskCancelled: In a plain function: the task was cancelled. Let it pass.
    """
    execution = current_execution()
    if execution is not None:
        execution.note_progress(done, total, note)


async def complete(result: object = None, *, in_: Transaction) -> None:
    """End the running task with a result, in the transaction of its own writes: both are there, or neither.

    Whatever becomes of this process after the commit, the task does not run again; whatever becomes of it
    before, nothing of the transaction is there. So its writes happen exactly once. Return soon after; what
    the task returns or raises then is not kept.

    Args:
        result: What counts as what the task returned.
        in_: The transaction.

    Raises:
        TaskLost: Another worker has the task. Let it pass, so that the transaction is rolled back.
        RuntimeError: No task runs.
    """
    execution = current_execution()
    if execution is None:
        raise RuntimeError("complete() belongs in a task that runs: nothing runs here that could end")
    await execution.complete(in_, result)
