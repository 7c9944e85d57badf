"""A started task, in the hands of whoever started it or knows its id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID

from freeloop.errors import TaskCancelled, TaskFailed
from freeloop.scope import limit_wait
from freeloop.tasks.model import State, TaskStatus

if TYPE_CHECKING:
    from freeloop.tasks.client import Tasks

R_co = TypeVar("R_co", covariant=True)


class Handle(Generic[R_co]):
    """One task.

    Attributes:
        id: Its id.
        name: Which task.
        created: Whether this start made it; False: one with the same key was there.
        arguments: What it was first started with, as JSON; empty where that is not known.
    """

    def __init__(
        self, tasks: Tasks, id_: UUID, name: str, *, created: bool = False, arguments: str = ""
    ) -> None:
        self.id = id_
        self.name = name
        self.created = created
        self.arguments = arguments
        self._tasks = tasks

    def __repr__(self) -> str:
        return f"<task '{self.name}' {self.id}>"

    async def status(self) -> TaskStatus:
        """Return all that is known of it.

        Raises:
            NotFound: It is gone, or its start has not been committed (404).
        """
        return await self._tasks.read(self.id)

    async def state(self) -> State:
        """Return its state; errors as of :meth:`status`."""
        return (await self.status()).state

    async def cancel(self) -> bool:
        """Cancel it; see :meth:`Tasks.cancel`."""
        return await self._tasks.cancel(self.id)

    async def events(self, *, after: int = 0) -> AsyncIterator[TaskStatus]:
        """Yield it as it is now and at each change, until its end; of several changes at once, the last.

        Args:
            after: The revision that has been seen already.
        """
        watch = self._tasks.watch
        async with watch.follow(self.id) as follower:
            follower.revision = after
            while True:
                status = await self.status()
                if status.revision != follower.revision:
                    follower.revision = status.revision
                    yield status
                if status.ended or watch.ended:
                    return
                await follower.wait()

    async def result(self, *, timeout: float | None = None) -> R_co:  # noqa: ASYNC109 - the caller's word
        """Wait for its end and return what it returned.

        Args:
            timeout: Seconds to wait at most; None: until the scope's deadline. The task goes on.

        Raises:
            TimeoutError: It has not ended in time.
            TaskFailed: It has failed, for good.
            TaskCancelled: It was cancelled.
        """
        async with asyncio.timeout(limit_wait(timeout)):
            async for status in self.events():
                if status.ended:
                    return self._value(status)
        raise TimeoutError(f"{self!r} has not ended, and this process ends")

    def _value(self, status: TaskStatus) -> R_co:
        if status.state == "failed":
            reason = (
                f"{status.error.type}: {status.error.message}" if status.error else "for an unknown reason"
            )
            raise TaskFailed(
                f"task '{self.name}' {self.id} failed after {status.attempt} executions: {reason}"
            )
        if status.state == "cancelled":
            raise TaskCancelled(f"task '{self.name}' {self.id} was cancelled")
        task = self._tasks.find(self.name)
        return status.result if task is None else task.payload.decode_result(status.result)  # type: ignore[no-any-return]
