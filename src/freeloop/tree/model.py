"""What a look at the tasks of a process has found: frozen, without references to what it tells of.

All times are seconds before or after the look. A task or scope is named by a number that is unique in one
process while it lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias

import orjson

from freeloop.ownership import tell_apps
from freeloop.tree.pace import paced

Line: TypeAlias = Mapping[str, Any]
State: TypeAlias = Literal["running", "ready", "waiting"]

is_apps: Final = tell_apps("aiohttp", "asyncpg")
"""Tells by the name of a module whether it is the app's, and not of what carries it or calls for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code.

    Attributes:
        file: Its path.
        line: Its number; 0: unknown.
        function: The function's qualified name.
        module: The module's name; empty: unknown.
    """

    file: str
    line: int
    function: str
    module: str = ""

    @property
    def is_apps(self) -> bool:
        """Whether it is of the app, as far as the module tells, and not of what carries it."""
        return is_apps(self.module)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds what is waited for.

    Attributes:
        task: The task's number; None: that is not known.
        name: What to call the holder: a task's name, a route, a thread.
        place: The line that took it, or where the thread stands; empty: unknown.
        seconds: For how long; None: unknown.
    """

    task: int | None
    name: str
    place: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """What a task waits for.

    Attributes:
        kind: A word for it, a key of :data:`freeloop.tree.waits.PHRASES`.
        text: The same in words.
        seconds: For how long the task has waited; None: unknown.
        at_least: Whether that is only how long it has been seen to wait.
        ends_in: Seconds until it ends by itself; None: it does not, or that is not known.
        on: The tasks whose end or next step ends it.
        needs: Whether it takes all of them or any one.
        open: Whether something else may end it too.
        holders: Who holds what it waits for.
        orphaned: Whether nobody but the task itself refers to what it waits for.
    """

    kind: str
    text: str
    seconds: float | None = None
    at_least: bool = False
    ends_in: float | None = None
    on: tuple[int, ...] = ()
    needs: Literal["all", "any"] = "all"
    open: bool = True
    holders: tuple[Holder, ...] = ()
    orphaned: bool = False


@dataclass(frozen=True, slots=True)
class TaskNode:
    """One task.

    Attributes:
        id: Its number.
        name: Its name.
        state: What it does.
        scope: The number of the scope it belongs to; None: it belongs to none.
        stack: Where it stands, the outermost line first.
        wait: What it waits for; None: for nothing.
        parent: The task whose group it is in; None: it is in none.
        awaited_by: The tasks that wait for it.
        kept: Whether anybody but the loop holds it.
        yields: Looks in a row that found it between two turns that it asked for itself.
    """

    id: int
    name: str
    state: State
    scope: int | None
    stack: tuple[Place, ...]
    wait: Wait | None = None
    parent: int | None = None
    awaited_by: tuple[int, ...] = ()
    kept: bool = True
    yields: int = 0


@dataclass(frozen=True, slots=True)
class ScopeNode:
    """A request, WebSocket or background execution.

    Attributes:
        id: Its number.
        kind: ``http``, ``websocket`` or ``background``.
        request: The request id.
        route: The route's template, or the function's name.
        seconds: For how long it has run.
        left: Seconds until its deadline; None: it has none.
        cause: Why it was cancelled; None while it was not.
        over: Whether it has ended, and what is left of it runs on.
        leases: What it has borrowed.
    """

    id: int
    kind: str
    request: str
    route: str
    seconds: float
    left: float | None
    cause: str | None
    over: bool
    leases: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Deadlock:
    """Tasks that wait for each other, and so for ever unless something from outside ends one of them.

    Attributes:
        tasks: Their numbers; each waits for the next, the last one for the first.
        behind: The numbers of those that can go on only after them.
    """

    tasks: tuple[int, ...]
    behind: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that looks like a mistake.

    Attributes:
        lint: Which check has found it.
        task: The task's number.
        text: What it is, and what to do, in a sentence.
    """

    lint: str
    task: int
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tasks of one loop at one time.

    Attributes:
        pid: The process.
        loop: The loop's kind, such as ``uvloop.Loop``.
        hung: Whether the loop did not answer, so that another thread has looked; then tasks may have moved
            meanwhile, where the loop went on.
        loop_stack: Where the loop's thread stands where it is hung, the outermost line first.
        scopes: All that have tasks.
        tasks: All tasks.
        deadlocks: Those found.
        findings: Of the lints.
    """

    pid: int
    loop: str
    hung: bool = False
    loop_stack: tuple[Place, ...] = ()
    scopes: tuple[ScopeNode, ...] = ()
    tasks: tuple[TaskNode, ...] = ()
    deadlocks: tuple[Deadlock, ...] = ()
    findings: tuple[Finding, ...] = ()

    def lines(self) -> Iterator[bytes]:
        """Render as JSON lines for a socket: short documents, since a long one would hold the GIL."""
        head = {"pid": self.pid, "loop": self.loop, "hung": self.hung, "loop_stack": self.loop_stack}
        parts = {name: list(reversed(getattr(self, name))) for name in _PARTS}
        # Where nobody else has it, each part goes when it is rendered: to let go of ten thousand at once
        # would hold the GIL too.
        del self
        yield orjson.dumps({"snapshot": head})
        for name, rest in parts.items():
            for _ in paced(range(len(rest))):
                yield orjson.dumps({name: rest.pop()})


_PARTS: Final[dict[str, type]] = {
    "scopes": ScopeNode,
    "tasks": TaskNode,
    "deadlocks": Deadlock,
    "findings": Finding,
}
# What the fields of these types are made of, where it is not plain JSON.
_NESTED: Final[dict[str, type]] = {
    "stack": Place,
    "loop_stack": Place,
    "wait": Wait,
    "holders": Holder,
    "leases": Holder,
}


def read_snapshot(lines: Iterable[Line]) -> Snapshot:
    """Read what :meth:`Snapshot.lines` has written.

    Fields of a newer version that this one does not know are left out.

    Raises:
        ValueError: Something is missing.
    """
    head: Line = {}
    parts: dict[str, list[Any]] = {name: [] for name in _PARTS}
    for line in lines:
        for name, value in line.items():
            if name == "snapshot":
                head = value
            elif name in parts:
                parts[name].append(_read(_PARTS[name], value))
    snapshot: Snapshot = _read(Snapshot, {**head, **parts})
    return snapshot


def _read(kind: type, value: Line) -> Any:  # noqa: ANN401 - an instance of kind
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: _read_field(name, each) for name, each in value.items() if name in known})
    except TypeError as error:
        raise ValueError(f"expected a {kind.__name__}, got {value!r:.200}") from error


def _read_field(name: str, value: Any) -> Any:  # noqa: ANN401 - a field's
    nested = _NESTED.get(name)
    if isinstance(value, list):
        return tuple(value) if nested is None else tuple(_read(nested, each) for each in value)
    return value if nested is None or value is None else _read(nested, value)
