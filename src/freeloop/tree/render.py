"""A snapshot as text, for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from freeloop.tree.forest import PARTS, choose_places, plant
from freeloop.tree.model import Deadlock, ScopeNode, Snapshot, TaskNode
from freeloop.tree.waits import say_seconds


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines that belong together; two with the same key are alike."""

    key: int
    seconds: float
    lines: list[str]


def render(snapshot: Snapshot, *, name: str = "") -> str:
    """Return what a snapshot tells: first what is wrong, then requests with their tasks, then other tasks.

    What looks alike is shown once, the longest wait of them, with a count.

    Args:
        snapshot: The snapshot.
        name: What to call the process besides its number.
    """
    drawing = _Drawing(snapshot)
    lines = [_head(snapshot, name)]
    lines += _describe_hang(snapshot)
    for deadlock in snapshot.deadlocks:
        lines += ["", *_describe_deadlock(deadlock, drawing.tasks)]
    if snapshot.findings:
        lines.append("")
    for finding in snapshot.findings:
        lines.append(f"{finding.lint}: {drawing.name(finding.task)} {finding.text}")
    for blocks in (drawing.draw_scopes(), drawing.draw_rest()):
        for block in drawing.merge(blocks):
            lines += ["", *block.lines]
    return "\n".join(lines)


def _head(snapshot: Snapshot, name: str) -> str:
    live = sum(not scope.over for scope in snapshot.scopes)
    return (
        f"{snapshot.pid} {name}".strip()
        + f": {_count(len(snapshot.tasks), 'task')}, {_count(live, 'scope')}, {snapshot.loop}"
    )


def _describe_hang(snapshot: Snapshot) -> Iterator[str]:
    if not snapshot.hung:
        return
    yield ""
    yield "THE LOOP IS HUNG. Nothing below moves until its thread goes on, which stands at"
    for place in choose_places(snapshot.loop_stack):
        yield f"    {place}"


def _describe_deadlock(deadlock: Deadlock, tasks: Mapping[int, TaskNode]) -> Iterator[str]:
    yield f"DEADLOCK of {_count(len(deadlock.tasks), 'task')}: they wait for each other"
    for number in deadlock.tasks:
        task = tasks[number]
        yield f"    {task.name} waits for {task.wait.text if task.wait else 'nothing'}"
        yield from (f"        {place}" for place in choose_places(task.stack)[-1:])
    if deadlock.behind:
        yield f"    and {_count(len(deadlock.behind), 'more task')} can go on only after them"


class _Drawing:
    """The trees of tasks as blocks of lines."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.tasks = {task.id: task for task in snapshot.tasks}
        self._scopes = snapshot.scopes
        self._roots, self._below = plant(self.tasks)
        self._drawn: set[int] = set()
        # What makes a block what it is, by number: one inside the other would be as deep as a chain of tasks.
        self._keys: dict[object, int] = {}

    def _key(self, *parts: object) -> int:
        return self._keys.setdefault(parts, len(self._keys))

    def name(self, number: int) -> str:
        return self.tasks[number].name if number in self.tasks else "a task"

    def draw_scopes(self) -> Iterator[_Block]:
        """Draw each scope with its tasks, those that have run for longest first."""
        roots: dict[int, list[TaskNode]] = {}
        for task in self._roots:
            if task.scope is not None:
                roots.setdefault(task.scope, []).append(task)
        for scope in sorted(self._scopes, key=lambda scope: -scope.seconds):
            blocks = self.merge([self._draw(task) for task in roots.get(scope.id, ())])
            if not blocks:
                continue  # its tasks are parts of another one's
            lines = [*_describe_scope(scope), *_indent(blocks)]
            key = self._key(scope.kind, scope.route, *(block.key for block in blocks))
            yield _Block(key, scope.seconds, lines)

    def draw_rest(self) -> Iterator[_Block]:
        """Draw the tasks of no scope, and those that only a ring leads to."""
        roots = [task for task in self._roots if task.scope is None]
        yield from (self._draw(task) for task in sorted(roots, key=lambda task: task.name))
        yield from (self._draw(task) for task in self.tasks.values() if task.id not in self._drawn)

    def merge(self, blocks: Iterable[_Block]) -> list[_Block]:
        """Put blocks that are alike together: the one with the longest wait stands for all of them."""
        alike: dict[int, list[_Block]] = {}
        for block in blocks:
            alike.setdefault(block.key, []).append(block)
        merged: list[_Block] = []
        for key, group in alike.items():
            longest = max(group, key=lambda block: block.seconds)
            lines = longest.lines
            if len(group) > 1:
                first, *rest = lines
                lines = [f"{first}  (and {len(group) - 1:,} more like it)", *rest]
            merged.append(_Block(self._key(key, len(group) > 1), longest.seconds, lines))
        return merged

    def _draw(self, task: TaskNode) -> _Block:
        """Draw a task and what is below it, without recursion: a chain of tasks may be long."""
        order: list[TaskNode] = []
        todo = [task]
        while todo:
            node = todo.pop()
            if node.id in self._drawn:
                continue
            self._drawn.add(node.id)
            order.append(node)
            todo += self._below[node.id]
        blocks: dict[int, _Block] = {}
        for node in reversed(order):  # what is below first
            below = [blocks.pop(part.id) for part in self._below[node.id] if part.id in blocks]
            blocks[node.id] = self._draw_one(node, below)
        return blocks[task.id]

    def _draw_one(self, task: TaskNode, below: list[_Block]) -> _Block:
        merged = self.merge(below)
        lines = [
            _describe_task(task),
            *(f"    {place}" for place in choose_places(task.stack)),
            *_indent(merged),
        ]
        wait = task.wait
        kind = () if wait is None else (wait.kind, "" if wait.kind in PARTS else wait.text)
        key = self._key(task.state, task.stack, kind, *(block.key for block in merged))
        return _Block(key, (wait.seconds if wait else None) or 0.0, lines)


def _describe_scope(scope: ScopeNode) -> Iterator[str]:
    left = "" if scope.left is None else f", {say_seconds(scope.left)} left"
    cause = "" if scope.cause is None else f", cancelled: {scope.cause}"
    over = ", over, but this is left of it" if scope.over else ""
    yield f"{scope.kind} {scope.route or '(no route)'} for {say_seconds(scope.seconds)}{left}{cause}{over}"
    yield f"    request {scope.request}"
    for lease in scope.leases:
        place = f" at {lease.place}" if lease.place else ""
        yield f"    has borrowed {lease.name} for {say_seconds(lease.seconds or 0.0)}{place}"


def _describe_task(task: TaskNode) -> str:
    wait = task.wait
    if wait is None:
        return f"{task.name} {'runs' if task.state == 'running' else 'is about to run'}"
    least = "at least " if wait.at_least else ""
    since = "" if wait.seconds is None else f" for {least}{say_seconds(wait.seconds)}"
    ends = "" if wait.ends_in is None else f"; this ends in {say_seconds(wait.ends_in)}"
    return f"{task.name} has waited{since} for {wait.text}{ends}"


def _indent(blocks: Sequence[_Block]) -> Iterator[str]:
    for index, block in enumerate(blocks):
        last = index == len(blocks) - 1
        first, *rest = block.lines
        yield f"  {'└' if last else '├'}─ {first}"
        yield from (f"  {' ' if last else '│'}  {line}" for line in rest)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
