"""One look at all tasks of a loop, in steps so small that the loop hardly notices."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Final

from freeloop.scope import Lease, Scope, scope_of
from freeloop.tree.coroutines import Places, Step, walk
from freeloop.tree.cycles import find_deadlocks
from freeloop.tree.draft import Contended, Draft
from freeloop.tree.functions import Fact, find_fact
from freeloop.tree.futures import Belonging, Ends, Future, Task, comes_from_thread, list_awaiting
from freeloop.tree.held import list_held
from freeloop.tree.lints import find_mistakes
from freeloop.tree.model import Deadlock, Holder, Place, ScopeNode, Snapshot, TaskNode, Wait
from freeloop.tree.pace import paced
from freeloop.tree.sightings import Sightings
from freeloop.tree.waits import describe_wait
from freeloop.tree.working import list_working, name_thread

_MOST_HOLDERS: Final = 20  # told of one wait
_COUNTS: Final = sys.version_info < (3, 14)  # later references are not all counted
_ORPHANS: Final = frozenset({"future", "event", "condition", "queue-get"})
# References that are there where nobody else has any, those from the task's own coroutines aside.
_KNOWN_OF_TASK: Final = 3  # the counting function's, our variable, the draft
_KNOWN_OF_SUBJECT: Final = 2  # the counting function's, the fact
_KNOWN_OF_FUTURE: Final = 7  # those, what it ends by, our variable, the draft, the task, its iterator


class Capture:
    """Reads the tasks of a loop. Use it once: all of :meth:`steps`, then :meth:`finish`.

    Args:
        loop: Whose tasks.
        sightings: What was seen of them before.
        hung: Whether the loop does not answer and this runs in another thread.
        loop_thread: The thread that the loop runs in.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sightings: Sightings,
        *,
        hung: bool = False,
        loop_thread: int | None = None,
    ) -> None:
        self._loop = loop
        self._sightings = sightings
        self._hung = hung
        self._loop_stack: tuple[Place, ...] = ()
        self._loop_thread = loop_thread
        self._now = time.monotonic()
        self._places = Places()
        self._drafts: dict[int, Draft] = {}
        self._scopes: dict[int, ScopeNode] = {}
        self._contended: dict[int, Contended] = {}
        self._reported: dict[int, list[Task]] = {}  # tasks by the queue that as_completed hears of them by
        self._threads: dict[int, int] | None = None

    def steps(self) -> Iterator[None]:
        """Read, a task a step; to be run in the loop's thread, or in another one where the loop hangs."""
        if self._hung and self._loop_thread is not None:
            self._loop_stack = self._places.of_thread(self._loop_thread)
        running = asyncio.current_task(self._loop)
        tasks = list(asyncio.all_tasks(self._loop))
        yield
        while tasks:
            # Popped, so that the list is no reference where references are counted.
            try:
                self._read(tasks.pop(), running)
            except RuntimeError:
                # Changed under our hands: the loop goes on after all. What was read so far is kept.
                if not self._hung:
                    raise
            yield
        if self._contended:
            for draft in list(self._drafts.values()):
                self._find_held(draft)
                yield

    def _read(self, task: Task, running: Task | None) -> None:
        draft = Draft(task, getattr(task, "_fut_waiter", None), "waiting")
        # Where it waits, what will wake it refers to it too.
        draft.kept = not _COUNTS or sys.getrefcount(task) > _KNOWN_OF_TASK + (draft.waiter is not None)
        self._drafts[id(task)] = draft
        scope = scope_of(task)
        if scope is not None:
            draft.scope = id(scope)
            if id(scope) not in self._scopes:
                self._scopes[id(scope)] = self._read_scope(scope)
        belonging = Belonging(task)
        draft.parent = belonging.parent
        if belonging.queue is not None:
            self._reported.setdefault(id(belonging.queue), []).append(task)
        # By asyncio's graph a task group awaits its tasks also while its owner does something else.
        draft.awaiting = tuple([id(each) for each in list_awaiting(task) if each is not draft.parent])
        steps = walk(task.get_coro())
        draft.stack = tuple([self._places.of(step.frame) for step in steps])
        if task is running:
            draft.state = "running"
            draft.stack = self._find_running(draft.stack)
        elif draft.waiter is None or draft.waiter.done():
            draft.state = "ready"
            if steps and steps[-1].code.co_name == "__sleep0":
                draft.yields = self._sightings.note_yield(task)
                return
        else:
            self._read_wait(draft, draft.waiter, steps)
        self._sightings.note_work(task)

    def _find_running(self, stack: tuple[Place, ...]) -> tuple[Place, ...]:
        """Return where the running task stands: a part of where the loop's thread does, where it hangs."""
        for index, place in enumerate(self._loop_stack):
            if stack and (place.file, place.function) == (stack[0].file, stack[0].function):
                return self._loop_stack[index:]
        return stack

    def _read_wait(self, draft: Draft, waiter: Future, steps: list[Step]) -> None:
        fact, depth = find_fact(steps, waiter)
        draft.kind, draft.name, draft.needs, draft.until = fact.kind, fact.name, fact.needs, fact.until
        seen = self._sightings.note_wait(waiter, self._now)
        draft.since, draft.at_least = (seen, True) if fact.began is None else (fact.began, False)
        ends = Ends(fact.futures, open=fact.open)
        draft.on = tuple([id(task) for task in ends.tasks])
        draft.names = tuple([task.get_name() for task in ends.tasks])
        draft.open = ends.open
        draft.permits = fact.permits
        draft.wanted = fact.wanted
        for thing in fact.wanted:
            self._contended.setdefault(id(thing), Contended(thing))
        if fact.owners:
            draft.holders = tuple([Holder(id(owner), owner.get_name()) for owner in fact.owners])
            draft.on = tuple([id(owner) for owner in fact.owners])
        if fact.kind == "thread":
            draft.holders = self._find_thread(fact, waiter)
        if fact.kind == "tasks" and fact.subject is not None:
            draft.queue = fact.subject
        elif _COUNTS and fact.kind in _ORPHANS:
            known = _KNOWN_OF_FUTURE if fact.subject is waiter else _KNOWN_OF_SUBJECT
            draft.orphaned = sys.getrefcount(fact.subject) - known <= _count_own(steps, depth, fact.subject)

    def _find_thread(self, fact: Fact, waiter: Future) -> tuple[Holder, ...]:
        ident = fact.thread
        if not isinstance(ident, int):
            source = comes_from_thread(waiter) if ident is None else ident
            if self._threads is None:
                self._threads = list_working()
            ident = self._threads.get(id(source))
        stack = None if ident is None else self._places.of_thread(ident)
        if ident is None or not stack:
            return ()
        return (Holder(None, name_thread(ident), str(stack[-1])),)

    def _find_held(self, draft: Draft) -> None:
        steps = walk(draft.task.get_coro())
        for thing, step in list_held(steps):
            contended = self._contended.get(id(thing))
            if contended is not None:
                place, since = str(self._places.of(step.frame)), None
                if isinstance(thing, Lease):
                    place, since = thing.place or place, self._now - thing.since
                contended.holders.append(Holder(id(draft.task), self._name_of(draft), place, since))

    def _name_of(self, draft: Draft) -> str:
        scope = self._scopes.get(draft.scope) if draft.scope is not None else None
        name = draft.task.get_name()
        return name if scope is None or not scope.route else f"{scope.route} ({name})"

    def _read_scope(self, scope: Scope) -> ScopeNode:
        return ScopeNode(
            id=id(scope),
            kind=scope.kind,
            request=scope.id,
            route=scope.route,
            seconds=self._now - scope.started,
            left=scope.remaining(),
            cause=scope.cause,
            over=scope.is_over,
            leases=tuple(
                [
                    Holder(None, f"{lease.kind} {lease.name}", lease.place, self._now - lease.since)
                    for lease in scope.leases
                ]
            ),
        )

    def finish(self) -> Snapshot:
        """Make the snapshot, in another thread than the loop's; the capture is empty afterwards."""
        waits: dict[int, Wait] = {}
        awaited: dict[int, list[int]] = {}
        for number, draft in paced(self._drafts.items()):
            wait = self._settle(draft)
            if wait is not None:
                waits[number] = wait
                for on in wait.on:
                    awaited.setdefault(on, []).append(number)
        deadlocks = [deadlock for deadlock in find_deadlocks(waits) if self._still_stands(deadlock)]
        tasks: list[TaskNode] = []
        # Taken out one by one: to let go of all of them at once would hold the loop.
        for _ in paced(range(len(self._drafts))):
            number, draft = self._drafts.popitem()
            by = dict.fromkeys([*awaited.pop(number, ()), *draft.awaiting])
            node = draft.make_node(number, waits.pop(number, None), tuple(by))
            tasks.append(node)
        return Snapshot(
            pid=os.getpid(),
            loop=f"{type(self._loop).__module__}.{type(self._loop).__qualname__}",
            hung=self._hung,
            loop_stack=self._loop_stack,
            scopes=tuple(self._scopes.values()),
            tasks=tuple(tasks),
            deadlocks=tuple(deadlocks),
            findings=tuple(find_mistakes(paced(tasks))),
        )

    def _settle(self, draft: Draft) -> Wait | None:
        """Make the wait of a task, now that it is known who holds what."""
        if not draft.kind:
            return None
        holders = list(draft.holders)
        on, names, is_open = draft.on, draft.names, draft.open
        for thing, name in draft.wanted.items():
            found = self._contended[id(thing)].holders
            holders += found
            if not found and isinstance(thing, Lease):
                holders.append(Holder(None, name, thing.place, self._now - thing.since))
        if draft.wanted:
            on = tuple(dict.fromkeys(holder.task for holder in holders if holder.task is not None))
            is_open = (
                draft.permits is None or sum(holder.task is not None for holder in holders) < draft.permits
            )
        if draft.queue is not None:
            tasks = [task for task in self._reported.get(id(draft.queue), ()) if not task.done()]
            on, names = tuple([id(task) for task in tasks]), tuple([task.get_name() for task in tasks])
        shown = tuple(holders[:_MOST_HOLDERS])
        return Wait(
            kind=draft.kind,
            text=describe_wait(
                draft.kind,
                draft.name,
                needs=draft.needs,
                tasks=names,
                holders=shown,
                more=len(holders) - len(shown),
            ),
            seconds=None if draft.since is None else max(0.0, self._now - draft.since),
            at_least=draft.at_least,
            ends_in=None if draft.until in {None, math.inf} else draft.until - self._now,
            on=on,
            needs=draft.needs,
            open=is_open,
            holders=shown,
            orphaned=draft.orphaned,
        )

    def _still_stands(self, deadlock: Deadlock) -> bool:
        """Whether each of the tasks waits as it did when it was read.

        They were read one after the other. But where each of them has waited for the same thing since, all
        of them did so when the last one was read.
        """
        drafts: Iterable[Draft] = (self._drafts[task] for task in deadlock.tasks)
        return all(getattr(draft.task, "_fut_waiter", None) is draft.waiter for draft in drafts)


def _count_own(steps: list[Step], depth: int, thing: object) -> int:
    """Count the references to something from a task's own coroutines."""
    count = 0
    for step in steps:
        count += sum(each is thing for each in step.referents)
    for step in steps[depth:]:  # those that were read, of which Python keeps a copy up to 3.12
        if isinstance(step.local, dict):
            count += sum(each is thing for each in step.local.values())
    return count
