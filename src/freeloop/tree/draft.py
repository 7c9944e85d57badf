"""A task as it was read, with live objects; for the time of a look only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from freeloop.tree.futures import Future, Task
from freeloop.tree.model import Holder, Place, State, TaskNode, Wait


@dataclass(slots=True)
class Draft:
    """A task as it was read; what others hold and who waits for it comes later."""

    task: Task
    waiter: Future | None
    state: State
    scope: int | None = None
    stack: tuple[Place, ...] = ()
    parent: Task | None = None
    kept: bool = True
    yields: int = 0
    kind: str = ""
    name: str = ""
    needs: Literal["all", "any"] = "all"
    open: bool = True
    since: float | None = None
    at_least: bool = False
    until: float | None = None
    on: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    wanted: Mapping[Any, str] = field(default_factory=dict)
    permits: int | None = None
    holders: tuple[Holder, ...] = ()
    orphaned: bool = False
    queue: Any = None  # of asyncio.as_completed, before 3.13
    awaiting: tuple[int, ...] = ()

    def make_node(self, number: int, wait: Wait | None, awaited_by: tuple[int, ...]) -> TaskNode:
        """Return what is kept of it."""
        return TaskNode(
            id=number,
            name=self.task.get_name(),
            state=self.state,
            scope=self.scope,
            stack=self.stack,
            wait=wait,
            parent=None if self.parent is None else id(self.parent),
            awaited_by=awaited_by,
            kept=self.kept,
            yields=self.yields,
        )


@dataclass(slots=True)
class Contended:
    """Something that is waited for because others hold it."""

    thing: Any
    holders: list[Holder] = field(default_factory=list)
