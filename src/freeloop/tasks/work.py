"""The worker of a process that serves an app: it takes part while the app runs, and in its shutdown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from freeloop.tasks.client import Tasks
from freeloop.tasks.execution import Execution
from freeloop.tasks.worker import Worker


class Work:
    """What one process does of an app's tasks; nothing, unless it is wanted and there are tasks.

    Args:
        tasks: The app's tasks.
        wanted: Whether this process runs tasks.
        concurrency: As of :class:`Worker`.
        heartbeat_timeout: As of :class:`Worker`.
        cleanup_timeout: As of :class:`Worker`.

    Attributes:
        worker: What runs them now; None: nothing does.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        wanted: bool,
        concurrency: int,
        heartbeat_timeout: float,
        cleanup_timeout: float,
    ) -> None:
        self.worker: Worker | None = None
        self._tasks = tasks
        self._wanted = wanted
        self._queues: Collection[str] | None = None
        self._concurrency = concurrency
        self._heartbeat_timeout = heartbeat_timeout
        self._cleanup_timeout = cleanup_timeout

    def want(self, queues: Collection[str] | None) -> None:
        """Run tasks in this process, from these queues; None: from all."""
        self._wanted = True
        self._queues = queues

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take tasks for the block."""
        if not self._wanted or not self._tasks.is_open:
            yield
            return
        async with Worker(
            self._tasks,
            queues=self._queues,
            concurrency=self._concurrency,
            heartbeat_timeout=self._heartbeat_timeout,
            cleanup_timeout=self._cleanup_timeout,
        ) as self.worker:
            yield
        self.worker = None

    def __contains__(self, scope: object) -> bool:
        return self.worker is not None and scope in self.worker

    @property
    def running(self) -> tuple[Execution, ...]:
        """What runs now."""
        return () if self.worker is None else self.worker.running

    def stop(self) -> None:
        """Take no more."""
        if self.worker is not None:
            self.worker.stop()

    def cancel(self) -> None:
        """Hand what runs back; see :meth:`Worker.cancel`."""
        if self.worker is not None:
            self.worker.cancel()

    async def wait_idle(self) -> None:
        """Wait until nothing runs and all ends are written."""
        if self.worker is not None:
            await self.worker.wait_idle()

    async def finish(self, seconds: float) -> None:
        """Let what runs end for so many seconds, then hand it back; see :meth:`Worker.finish`."""
        if self.worker is not None:
            await self.worker.finish(seconds)
