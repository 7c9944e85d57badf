"""The port to what keeps jobs until a worker takes them, gives each to one worker, and knows priorities.

A job is no more than a task's name and id; all else is in our own table, see :mod:`freeloop.tasks.store`.
Each method runs its statements in the caller's transaction, so that job and task change together. All lock
the job before the task: whoever has the job owns the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from freeloop.database import Queries


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is to be queued.

    Args:
        task: The task's id.
        name: The task's name.
        priority: Higher ones are taken first.
    """

    task: UUID
    name: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker has taken.

    Args:
        id: The engine's own id.
        task: The task's id.
        name: The task's name.
        priority: Higher ones were taken first.
    """

    id: int
    task: UUID
    name: str
    priority: int


class Engine(Protocol):
    """Keeps jobs; see the module.

    Attributes:
        new_id: The SQL expression of a new job's id. It and the next are parts of the one statement that
            writes a task and its job: a start is as fast as one round trip.
        put_fresh: The end of that statement: it queues the rows of ``fresh``, which have id (the task's),
            job, name, priority and due_at.
    """

    new_id: str
    put_fresh: str

    async def put(self, queries: Queries, jobs: Sequence[NewJob]) -> list[int]:
        """Queue jobs; return their ids in the same order."""

    async def take(
        self, queries: Queries, names: Mapping[str, int], *, worker: UUID, limit: int
    ) -> list[Job]:
        """Give jobs that are due to a worker, the most urgent first.

        Args:
            queries: Where.
            names: The tasks that it runs, and how many of each may be taken at once by all workers; 0: any.
            worker: Who takes them.
            limit: How many at most.
        """

    async def remove(self, queries: Queries, jobs: Sequence[int], *, worker: UUID | None) -> set[int]:
        """Remove jobs that a worker has, or that nobody has (None); return those that were so."""

    async def put_back(self, queries: Queries, delays: Mapping[int, float], *, worker: UUID) -> set[int]:
        """Queue jobs again that a worker has, each after so many seconds; return those that it had."""

    async def wake(self, queries: Queries, jobs: Sequence[int]) -> set[int]:
        """Let jobs that nobody has be taken at once, whatever time they waited for; return those."""

    async def release(self, queries: Queries, worker: UUID) -> list[Job]:
        """Queue again all that a worker has; return it."""

    async def next_due(self, queries: Queries, names: Sequence[str]) -> float | None:
        """Return the seconds until the next job becomes due; None: none waits for its time."""
