"""What a task is: a function, its name, and how it is run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from freeloop.tasks.payload import Payload
from freeloop.tasks.retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
# What `start` takes itself.
_TAKEN: Final = frozenset({"in_", "key", "group", "delay", "at"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a task is run.

    Attributes:
        queue: Which workers take it.
        priority: Higher ones are taken first.
        timeout: Seconds that an execution may take; None: as long as it takes.
        retry: When a failed execution is followed by another.
        concurrency: Executions at once at most, on all machines together; None: any.
        rate: Executions that begin in a second at most, likewise; None: any.
        group_concurrency: Executions at once of one group at most, likewise.
        group_rate: Executions of one group that begin in a second at most, likewise.
    """

    queue: str = "default"
    priority: int = 0
    timeout: float | None = 600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    concurrency: int | None = None
    rate: float | None = None
    group_concurrency: int | None = None
    group_rate: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.queue):
            raise ValueError(f"expected a queue of letters, digits, '_', '.' and '-'; got {self.queue!r}")
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"expected a timeout over 0, or None for none; got {self.timeout!r}")
        for most in (self.concurrency, self.group_concurrency):
            if most is not None and most < 1:
                raise ValueError(f"expected a concurrency of 1 or more, or None; got {most!r}")
        for rate in (self.rate, self.group_rate):
            if rate is not None and not rate > 0:
                raise ValueError(f"expected a rate over 0 a second, or None; got {rate!r}")


class Task(Generic[P, R]):
    """A declared task. Called, it is the function itself, here and now.

    Args:
        function: An async function, or a plain one, which runs in threads.
        name: What it is called in the database: keep it when the function moves.
        options: How it is run.

    Raises:
        TypeError: Its parameters cannot be JSON; see :class:`Payload`.
    """

    def __init__(self, function: Callable[P, Any], name: str, options: Options) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"expected a name of letters, digits, '_', '.' and '-'; got {name!r}")
        if taken := _TAKEN & inspect.signature(function).parameters.keys():
            raise TypeError(f"task '{name}': rename its parameter '{min(taken)}', which start() takes itself")
        self.function = function
        self.name = name
        self.options = options
        self.payload = Payload(name, function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # noqa: ANN401 - a coroutine, or a result
        """Call the function."""
        return self.function(*args, **kwargs)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return a start of this task with these arguments, checked.

        Raises:
            PayloadRefused: They do not fit (422).
        """
        return Call(self, self.payload.encode(args, kwargs))

    def __repr__(self) -> str:
        return f"<task '{self.name}'>"


class Registry(Protocol):
    """Where declared tasks go."""

    def declare(self, task: Task[..., Any]) -> None:
        """Add one."""


class TaskDecorator:
    """Makes a task of a function, and adds it to a registry.

    Args:
        registry: Where it goes.
        name: Its name; None: the function's.
        options: How it is run.
    """

    def __init__(self, registry: Registry, name: str | None, options: Options) -> None:
        self._registry = registry
        self._name = name
        self._options = options

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...

    def __call__(self, function: Callable[P, Any]) -> Task[P, Any]:
        """Declare a function."""
        task: Task[P, Any] = Task(function, self._name or function.__name__, self._options)
        self._registry.declare(task)
        return task


@dataclass(frozen=True, slots=True)
class Call(Generic[R_co]):
    """A task with its arguments, to be started.

    Attributes:
        task: Which one.
        arguments: As JSON.
        key: What makes it unique among the tasks of its name; None: nothing.
        group: What it shares the limits of a group with; None: nothing.
    """

    task: Task[..., R_co]
    arguments: str
    key: str | None = None
    group: str | None = None

    def keyed(self, key: str) -> Call[R_co]:
        """Return the same with a key."""
        return replace(self, key=key)

    def grouped(self, group: str) -> Call[R_co]:
        """Return the same in a group."""
        return replace(self, group=group)
