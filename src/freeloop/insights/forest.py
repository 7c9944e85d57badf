"""A snapshot's tasks as branches to draw: each request with its tasks, then the tasks of none. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from freeloop.tree import ScopeNode, Snapshot, TaskNode
from freeloop.tree.forest import Forest, choose_places, plant
from freeloop.tree.model import Place


@dataclass(frozen=True, slots=True)
class Row:
    """A task in its branch.

    Attributes:
        depth: How many tasks it is below.
        task: The task.
        lines: Where it stands: lines of the app, or the innermost one where it has none.
    """

    depth: int
    task: TaskNode
    lines: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A request, or a task that belongs to none, with what is below.

    Attributes:
        scope: The request; None: there is none.
        rows: The tasks, each behind what it is below.
        alike: How many others look the same; they are left out.
    """

    scope: ScopeNode | None
    rows: tuple[Row, ...]
    alike: int = 0

    @property
    def title(self) -> str:
        """What to call it."""
        return (self.scope.route if self.scope else "") or self.rows[0].task.name

    @property
    def waits(self) -> float:
        """For how long its longest wait has lasted, in seconds."""
        return max((row.task.wait.seconds or 0.0 for row in self.rows if row.task.wait), default=0.0)

    def matches(self, wanted: str) -> bool:
        """Return whether a text in small letters is anywhere in it; empty: in all."""
        return not wanted or any(wanted in text.lower() for text in self._texts())

    def _texts(self) -> list[str]:
        texts = [self.title, self.scope.request if self.scope else ""]
        for row in self.rows:
            texts += [row.task.name, row.task.wait.text if row.task.wait else "", *map(str, row.lines)]
        return texts


def grow(snapshot: Snapshot, *, most: int = 2_000) -> list[Branch]:
    """Return the branches: requests first, those that run for longest before the others.

    Args:
        snapshot: The snapshot.
        most: Tasks that are drawn at most.
    """
    tasks = {task.id: task for task in snapshot.tasks[:most]}
    forest = plant(tasks)
    drawn: set[int] = set()
    scopes = {scope.id: scope for scope in snapshot.scopes}
    rows: dict[int | None, list[Row]] = {}
    single: list[Branch] = []
    for root in [*forest.roots, *tasks.values()]:  # those that only a ring leads to come last
        if root.id in drawn:
            continue
        found = tuple(_climb(root, forest, drawn))
        if root.scope in scopes:
            rows.setdefault(root.scope, []).extend(found)
        else:
            single.append(Branch(None, found))
    requests = [Branch(scopes[number], tuple(found)) for number, found in rows.items() if number is not None]
    requests.sort(key=lambda branch: -(branch.scope.seconds if branch.scope else 0.0))
    single.sort(key=lambda branch: branch.title)
    return _fold([*requests, *single])


def _climb(root: TaskNode, forest: Forest, drawn: set[int]) -> list[Row]:
    rows: list[Row] = []
    todo = [(root, 0)]
    while todo:
        task, depth = todo.pop()
        if task.id in drawn:
            continue
        drawn.add(task.id)
        rows.append(Row(min(depth, 12), task, tuple(choose_places(task.stack))))
        todo += [(part, depth + 1) for part in reversed(forest.below[task.id])]
    return rows


def _fold(branches: list[Branch]) -> list[Branch]:
    """Leave out what looks the same as another; that with the longest wait stands for all."""
    alike: dict[object, list[Branch]] = {}
    for branch in branches:
        kind = (branch.scope.kind, branch.scope.route) if branch.scope else None
        shape = tuple(
            (row.depth, row.task.state, row.task.stack, row.task.wait.kind if row.task.wait else "")
            for row in branch.rows
        )
        alike.setdefault((kind, shape), []).append(branch)
    return [
        replace(max(group, key=lambda branch: branch.waits), alike=len(group) - 1) for group in alike.values()
    ]
