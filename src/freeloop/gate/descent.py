"""From the task of a request down to the tasks that do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import anyio._backends._asyncio

# anyio tells nobody which tasks a task group runs, and asks nobody before it cancels them. Where a later
# version keeps them elsewhere, nothing is found, and the outermost task is cancelled instead.
_states: Mapping[asyncio.Task[Any], Any] = getattr(anyio._backends._asyncio, "_task_states", {})


def find_innermost(task: asyncio.Task[Any]) -> tuple[asyncio.Task[Any], ...]:
    """Return the tasks in anyio's task groups below ``task`` that have none below themselves.

    Empty where it has no such task groups.
    """
    try:
        below = _list_below(task)
        return tuple(found for found in below if not _list_below(found))
    except AttributeError:  # as above
        return ()


def _list_below(task: asyncio.Task[Any]) -> set[asyncio.Task[Any]]:
    state = _states.get(task)
    scope: Any = None if state is None else state.cancel_scope
    top = None
    while scope is not None and scope._host_task is task:
        top, scope = scope, scope._parent_scope
    return set() if top is None else {found for found in _list_tasks(top) if found is not task}


def _list_tasks(scope: Any) -> Iterator[asyncio.Task[Any]]:  # noqa: ANN401 - anyio's CancelScope
    yield from scope._tasks
    for inner in scope._child_scopes:
        yield from _list_tasks(inner)
