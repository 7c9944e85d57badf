"""How a task looks from outside: its state, and what has become of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args
from uuid import UUID

from pydantic import BaseModel, Field

State: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]
"""``queued``: waits for a worker, or for its time; the latter three are ends."""

STATES: Final[tuple[str, ...]] = get_args(State)
ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})


class Progress(BaseModel):
    """How far an execution has come."""

    done: float = Field(description="How much is done, in any unit.")
    total: float | None = Field(None, description="Of how much; null where that is not known.")
    note: str | None = Field(None, description="What it is at, for people.")


class Failure(BaseModel):
    """Why an execution failed."""

    type: str = Field(description="The exception's type.")
    message: str = Field(description="What it says.")
    traceback: str | None = Field(None, description="Where it came from, the innermost line last.")


class TaskStatus(BaseModel):
    """One task as it is now."""

    id: UUID
    name: str = Field(description="Which task, by its declared name.")
    queue: str
    priority: int = Field(description="Higher ones are taken first.")
    key: str | None = Field(description="What makes it unique among the tasks of its name; null: nothing.")
    state: State
    attempt: int = Field(description="Which execution this is or was; 0 before the first.")
    failures: int = Field(description="Executions that failed.")
    losses: int = Field(description="Executions whose worker vanished.")
    revision: int = Field(description="Counts its changes from 1.")
    progress: Progress | None
    result: Any = Field(description="What it returned, as JSON.")
    error: Failure | None = Field(description="Why the latest execution failed that did.")
    request_id: str | None = Field(description="The id of the request that started it.")
    created_at: datetime = Field(description="When it was started, UTC.")
    due_at: datetime = Field(description="When it may run, or might, UTC.")
    started_at: datetime | None = Field(description="When its latest execution began, UTC.")
    finished_at: datetime | None = Field(description="When it came to an end, UTC.")
    cancel_at: datetime | None = Field(description="When somebody asked for its cancellation, UTC.")

    @property
    def ended(self) -> bool:
        """Whether it has come to an end."""
        return self.state in ENDS


class TaskPage(BaseModel):
    """A part of the tasks, the latest first."""

    tasks: list[TaskStatus]
    next: UUID | None = Field(
        description="Send it as `before` for the next page; null on the last one. Of a name or a state that "
        "few have, a page may be short, or empty, before the last."
    )
