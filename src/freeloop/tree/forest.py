"""The tasks of a snapshot as trees, and which lines tell where one stands: for all that draw them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from freeloop.tree.model import Place, TaskNode

PARTS: Final = frozenset({"task", "tasks", "group"})
"""Kinds of waits that make what is waited for a part of the task that waits."""


class Forest(NamedTuple):
    """The tasks as trees.

    Attributes:
        roots: Those that are a part of no other one; of a ring none is.
        below: The parts of each, by its number: what it waits for, then what it has started.
    """

    roots: Sequence[TaskNode]
    below: Mapping[int, Sequence[TaskNode]]


def plant(tasks: Mapping[int, TaskNode]) -> Forest:
    """Put each task below one other at most: the first that waits for it, else the one that has started it.

    Args:
        tasks: By number.
    """
    below: dict[int, list[TaskNode]] = {number: [] for number in tasks}
    placed: set[int] = set()
    for task in tasks.values():
        if task.wait and task.wait.kind in PARTS:
            for part in task.wait.on:
                if part in tasks and part not in placed:
                    below[task.id].append(tasks[part])
                    placed.add(part)
    for task in tasks.values():
        if task.parent in below and task.id not in placed:
            below[task.parent].append(task)
            placed.add(task.id)
    return Forest([task for task in tasks.values() if task.id not in placed], below)


def choose_places(stack: Sequence[Place]) -> Sequence[Place]:
    """Return the lines of the app, and the innermost one where it has none."""
    apps = [place for place in stack if place.is_apps and place.function != "<module>"]
    return apps or stack[-1:]
