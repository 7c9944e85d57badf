"""What a task holds: the ``async with`` blocks that its coroutines are in the middle of.

asyncio's locks do not say who holds them. But the interpreter keeps the ``__aexit__`` that is to be called at
the end of a block, and the garbage collector sees it. What was acquired in another way is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from types import FunctionType, MethodType
from typing import Any, Final

from freeloop.tree.coroutines import Step, walk

_DEEPEST: Final = 10  # context managers in each other


def list_held(steps: Sequence[Step]) -> Iterator[tuple[Any, Step]]:
    """Yield what the coroutines of a suspended task hold, each with the step that holds it."""
    waited = {id(_lock_of(step.local["self"])) for step in steps if step.code.co_qualname == "Condition.wait"}
    for step, inner in zip_longest(steps, steps[1:]):
        managers = list(_list_managers(step.referents))
        if inner is not None and inner.code.co_name == "__aenter__":
            # The last one, on top of the others, is not held yet.
            entered = inner.local.get("self")
            if managers and managers[-1] is entered:
                managers.pop()
        for manager in managers:
            for held in _open(manager, _DEEPEST):
                if id(held) not in waited:  # a condition gives its lock back while it is waited for
                    yield held, step


def _list_managers(referents: Sequence[Any]) -> Iterator[Any]:
    below: Any = None
    for each in referents:
        if type(each) is MethodType and each.__func__.__name__ == "__aexit__":
            yield each.__self__
        # Since Python 3.14 the function and what it is called of lie one above the other.
        elif type(below) is FunctionType and getattr(type(each), "__aexit__", None) is below:
            yield each
        below = each


def _open(manager: Any, depth: int) -> Iterator[Any]:  # noqa: ANN401 - of any type
    """Yield what a context manager stands for: itself, or what is behind it."""
    inner = _INSIDES.get(type(manager).__qualname__)
    if inner is None:
        yield manager
    else:
        for each in inner(manager) if depth else ():
            yield from _open(each, depth - 1)


def _lock_of(condition: Any) -> Any:  # noqa: ANN401 - asyncio's or anyio's
    return getattr(condition, "_lock", None)


def _inside_generator(manager: Any) -> Iterator[Any]:  # noqa: ANN401 - contextlib's
    for step in walk(manager.gen):
        yield from _list_managers(step.referents)


def _inside_stack(manager: Any) -> Iterator[Any]:  # noqa: ANN401 - contextlib's
    for _, callback in list(manager._exit_callbacks):
        yield from _list_managers([callback])


def _inside_condition(manager: Any) -> Iterator[Any]:  # noqa: ANN401 - asyncio's or anyio's
    yield _lock_of(manager)


def _inside_loan(manager: Any) -> Iterator[Any]:  # noqa: ANN401 - freeloop.database's
    if (lease := getattr(manager, "_lease", None)) is not None:
        yield lease


def _inside_acquired(manager: Any) -> Iterator[Any]:  # noqa: ANN401 - asyncpg's
    if manager.connection is not None:
        yield manager.connection._holder


_INSIDES: Final[dict[str, Callable[[Any], Iterator[Any]]]] = {
    "_AsyncGeneratorContextManager": _inside_generator,
    "AsyncExitStack": _inside_stack,
    "Condition": _inside_condition,
    "StatementLoan": _inside_loan,
    "Loan": _inside_loan,
    "PoolAcquireContext": _inside_acquired,
}
