"""What each page reads: one function a page, the same for the page itself and for its JSON twin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

from freeloop.insights import Fleet, diagnose
from freeloop.insights.answers import LiveScope
from freeloop.insights.forest import Branch, grow
from freeloop.tasks.model import STATES, State

Answer: TypeAlias = Mapping[str, Any]

_SORTS: Final[Mapping[str, Callable[[LiveScope], Any]]] = {
    "seconds": lambda scope: -scope.seconds,
    "left": lambda scope: scope.left if scope.left is not None else float("inf"),
    "route": lambda scope: scope.route,
    "leases": lambda scope: -len(scope.leases),
    **{
        kind: lambda scope, kind=kind: -scope.times.get(kind, 0.0)  # type: ignore[misc]
        for kind in ("queue", "connection", "sql", "upstream", "thread-wait", "thread", "app")
    },
}
_SHOWN: Final = 100  # rows of live scopes
_MOST_TASKS: Final = 2_000  # of a tree


class Filters:
    """The query of a page's URL; what is no filter, or has no sense, is left out."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self.query = {name: value[:200] for name, value in query.items() if name in _NAMES and value}

    def text(self, name: str) -> str:
        """Return a filter's text; empty: it is not set."""
        return self.query.get(name, "")

    def number(self, name: str) -> int | None:
        """Return a filter's number; None: it is not set."""
        value = self.text(name)
        return int(value) if value.isascii() and value.isdecimal() else None

    @property
    def process(self) -> int | None:
        """The process that is looked at; None: all of them."""
        return self.number("process")


_NAMES: Final = frozenset({"process", "sort", "kind", "q", "open", "state", "name", "before", "lang", "idle"})


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        name: Its path and template.
        every: Seconds between two updates, 1 or more.
        read: Reads what it shows.
    """

    name: str
    every: float
    read: Callable[[Fleet, Filters], Awaitable[Answer]]


async def read_now(fleet: Fleet, filters: Filters) -> Answer:
    """Read what happens now, and what is wrong."""
    snapshot = await fleet.answer("now", filters.process)
    return {"sentences": diagnose(snapshot), "snapshot": snapshot}


async def read_requests(fleet: Fleet, filters: Filters) -> Answer:
    """Read what runs, and what did not go well."""
    answer = await fleet.answer("requests", filters.process)
    wanted, kind = filters.text("q").lower(), filters.text("kind")
    live = [
        scope
        for scope in answer.live
        if (not wanted or wanted in scope.route.lower() or wanted in scope.id.lower())
        and (not kind or scope.kind == kind)
    ]
    live.sort(key=_SORTS.get(filters.text("sort"), _SORTS["seconds"]))
    number = filters.number("open")
    opened = next((scope for scope in answer.live if scope.number == number), None)
    return {
        "running": answer.running,
        "live": live[:_SHOWN],
        "failed": [each for each in answer.failed if wanted in each.route.lower()][:25],
        "slow": [each for each in answer.slow if wanted in each.route.lower()][:25],
        "open": opened,
        "gone": number is not None and opened is None,
        "tree": await _read_branch(fleet, opened) if opened else None,
    }


async def _read_branch(fleet: Fleet, scope: LiveScope) -> Branch | None:
    for _, tree in await fleet.look(scope.process):
        tasks = tuple(task for task in tree.tasks if task.scope == scope.number)
        for branch in grow(replace(tree, tasks=tasks)):
            if branch.scope is not None:
                return branch
    return None


async def read_blocks(fleet: Fleet, filters: Filters) -> Answer:
    """Read what blocks the loop, the worst first."""
    answer = await fleet.answer("blocks", filters.process)
    wanted = filters.text("q").lower()
    blocks = [each for each in answer.blocks if wanted in f"{each.route} {each.place}".lower()]
    return {"blocks": blocks, "dropped": answer.dropped, "watched": answer.watched}


async def read_tree(fleet: Fleet, filters: Filters) -> Answer:
    """Read what all tasks wait for."""
    trees = await fleet.look(filters.process)
    wanted = filters.text("q").lower()
    return {
        "trees": [
            {
                "process": process,
                "tasks": len(tree.tasks),
                "hung": tree.hung,
                "loop_stack": tree.loop_stack,
                "deadlocks": [
                    [task for number in ring.tasks for task in tree.tasks if task.id == number]
                    for ring in tree.deadlocks
                ],
                "behind": [len(ring.behind) for ring in tree.deadlocks],
                "findings": tree.findings,
                "names": {task.id: task.name for task in tree.tasks} if tree.findings else {},
                "branches": [each for each in grow(tree, most=_MOST_TASKS) if each.matches(wanted)],
                "cut": len(tree.tasks) > _MOST_TASKS,
            }
            for process, tree in trees
        ]
    }


async def read_tasks(fleet: Fleet, filters: Filters) -> Answer:
    """Read the durable tasks."""
    state = filters.text("state")
    before = filters.text("before")
    answer = await fleet.tasks.read(
        state=cast("State", state) if state in STATES else None,
        name=filters.text("name") or None,
        before=UUID(before) if _is_id(before) else None,
    )
    opened = filters.text("open")
    shown = next(
        (task for task in (*answer.failed, *answer.running, *answer.recent) if str(task.id) == opened), None
    )
    return {"answer": answer, "open": shown, "states": STATES}


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


async def read_database(fleet: Fleet, filters: Filters) -> Answer:
    """Read what the pools do."""
    answer = await fleet.answer("database", filters.process)
    statements = sorted(answer.statements, key=lambda row: -row.seconds)
    idle = sorted(answer.held_idle, key=lambda row: -row.longest)
    return {"pools": answer.pools, "statements": statements[:50], "held_idle": idle[:50]}


async def read_upstreams(fleet: Fleet, filters: Filters) -> Answer:
    """Read what the sources do."""
    answer = await fleet.answer("upstreams", filters.process)
    return {
        "sources": [
            each for each in answer.sources if each.attempts or each.refused or each.source != "(none)"
        ]
    }


PAGES: Final[Mapping[str, Page]] = {
    page.name: page
    for page in (
        Page("now", 1.0, read_now),
        Page("requests", 1.0, read_requests),
        Page("blocks", 2.0, read_blocks),
        Page("tree", 5.0, read_tree),
        Page("tasks", 2.0, read_tasks),
        Page("database", 2.0, read_database),
        Page("upstreams", 2.0, read_upstreams),
    )
}
