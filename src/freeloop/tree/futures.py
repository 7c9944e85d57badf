"""What a future's end depends on, as far as the owners of its callbacks tell, and who awaits it.

asyncio keeps no list of it before Python 3.14; its own functions leave their marks in the callbacks that
they add. From 3.14 on they note who awaits a future, and other libraries can: what no callback tells is read
from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

Task: TypeAlias = "asyncio.Task[Any]"
Future: TypeAlias = "asyncio.Future[Any]"

_DEEPEST: Final = 20  # shields and gathers in each other


class Ends:
    """Whose end ends a future.

    Attributes:
        tasks: The tasks.
        open: Whether something else has to end too, or may end it: what else there is, is not known.
    """

    __slots__ = ("open", "tasks")

    def __init__(self, futures: Iterable[Any] = (), *, open: bool = False) -> None:  # noqa: A002 - the attribute
        self.tasks: dict[Task, None] = {}
        self.open = open
        for future in list(futures):  # at one go: it may change, where another thread looks
            self._add(future, _DEEPEST)

    def _add(self, future: Any, depth: int) -> None:  # noqa: ANN401 - a future of any make
        if isinstance(future, asyncio.Task):
            if not future.done():
                self.tasks[future] = None
            return
        inner = list(getattr(future, "_children", ())) or list(_shielded(future))  # of gather(), of shield()
        if not inner or not depth:
            self.open = True
        for each in inner if depth else ():
            self._add(each, depth - 1)


def _shielded(future: Future) -> Iterator[Future]:
    for callback in list_callbacks(future):
        if getattr(callback, "__qualname__", "") == "shield.<locals>._outer_done_callback":
            yield read_cell(callback, "inner")


def list_callbacks(future: Any) -> list[Any]:  # noqa: ANN401 - a future of any make
    """Return what a future calls when it has ended."""
    return [pair[0] for pair in getattr(future, "_callbacks", None) or ()]


def read_cell(function: Any, name: str) -> Any:  # noqa: ANN401 - whatever the variable is
    """Return a variable that a function has from around it; None where it has none or no value yet."""
    code = getattr(function, "__code__", None)
    if code is None or name not in code.co_freevars:
        return None
    try:
        return function.__closure__[code.co_freevars.index(name)].cell_contents
    except ValueError:
        return None


def list_awaiting(future: Any, depth: int = _DEEPEST) -> Iterator[Task]:  # noqa: ANN401 - of any make
    """Yield the tasks that await a future by asyncio's own call graph; none before Python 3.14."""
    for each in getattr(future, "_asyncio_awaited_by", None) or ():
        if isinstance(each, asyncio.Task):
            if not each.done():
                yield each
        elif depth:
            yield from list_awaiting(each, depth - 1)


def comes_from_thread(future: Any) -> Any:  # noqa: ANN401 - a concurrent.futures.Future
    """Return the future of a thread or process pool whose result this one gets; None: it is no such."""
    for callback in list_callbacks(future):
        if getattr(callback, "__qualname__", "") == "_chain_future.<locals>._call_check_cancel":
            return read_cell(callback, "source")
    return None


class Belonging:
    """What a task's own callbacks tell.

    Attributes:
        parent: The task whose task group it is in.
        queue: The queue by which ``asyncio.as_completed`` hears of its end, up to Python 3.12.
    """

    __slots__ = ("parent", "queue")

    def __init__(self, task: Task) -> None:
        self.parent: Task | None = None
        self.queue: Any = None
        for callback in list_callbacks(task):
            name = getattr(callback, "__qualname__", "")
            if name == "TaskGroup._on_task_done":
                self.parent = callback.__self__._parent_task
            elif name == "TaskGroup._spawn.<locals>.task_done":  # anyio's
                group = read_cell(callback, "self")
                self.parent = getattr(getattr(group, "cancel_scope", None), "_host_task", None)
            elif name == "as_completed.<locals>._on_completion":
                self.queue = read_cell(callback, "done")
