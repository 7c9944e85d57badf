"""What looks like a mistake in a snapshot, in tokio-console's manner: a check and a sentence each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from freeloop.tree.model import Finding, TaskNode
from freeloop.tree.waits import say_seconds

LONG_WAIT: Final = 10.0
"""Seconds that a wait has to last before it is called lost."""

_ROUNDS: Final = 3  # looks in a row that find a task between turns of its own

_LOST: Final = (
    "has waited {lasted} for {wait}, which nobody else refers to: nobody can complete it. Keep it where "
    "the code that completes it finds it, or give the wait a timeout."
)
LINTS: Final[dict[str, str]] = {
    "lost": _LOST,
    "lost-soon": f"{_LOST} The garbage collector may end it at any time.",
    "self-waking": "asked for its next turn at each of {count} looks in a row, and waited for nothing: "
    "sleep(0) in a loop keeps a CPU busy. Wait for what it looks for, with an asyncio.Event or a timeout.",
    "unkept": "is awaited by nobody and kept by nobody: where it fails, nobody is told. Start it with "
    "kit.spawn or in a TaskGroup, or keep what create_task returned.",
}
"""What the checks say, to stand behind a task's name."""

_Check = Callable[[TaskNode, float], str | None]


def find_mistakes(tasks: Iterable[TaskNode], *, long_wait: float = LONG_WAIT) -> Iterator[Finding]:
    """Yield what looks like a mistake.

    Args:
        tasks: All tasks.
        long_wait: Seconds that a wait has to last before it is called lost.
    """
    for task in tasks:
        for lint, check in _CHECKS.items():
            text = check(task, long_wait)
            if text is not None:
                yield Finding(lint, task.id, text)


def _lost(task: TaskNode, long_wait: float) -> str | None:
    wait = task.wait
    if wait is None or not wait.orphaned or (wait.seconds or 0.0) < long_wait:
        return None
    text = LINTS["lost" if task.kept else "lost-soon"]
    return text.format(lasted=say_seconds(wait.seconds or 0.0), wait=wait.text)


def _self_waking(task: TaskNode, long_wait: float) -> str | None:
    del long_wait
    return LINTS["self-waking"].format(count=task.yields) if task.yields >= _ROUNDS else None


def _unkept(task: TaskNode, long_wait: float) -> str | None:
    del long_wait
    if task.kept or task.awaited_by or task.state == "running" or not task.stack or not task.stack[0].is_apps:
        return None
    return LINTS["unkept"]


_CHECKS: Final[dict[str, _Check]] = {"lost": _lost, "self-waking": _self_waking, "unkept": _unkept}
