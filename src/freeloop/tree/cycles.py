"""Deadlocks: tasks that wait for each other and for nothing else. Pure.

A task that needs all of several others is stuck where one of them is; a task that any one of several wakes
is stuck where all of them are and nothing else may wake it. Let everybody go on who can: whoever is left is
stuck, and the rings among them are the deadlocks (the AND-OR model of Knapp, "Deadlock detection in
distributed databases", 1987).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from freeloop.tree.model import Deadlock, Wait

Graph: TypeAlias = Mapping[int, Wait]


def find_deadlocks(waits: Graph) -> list[Deadlock]:
    """Return the deadlocks among tasks that wait, the largest number of tasks behind it first."""
    stuck = find_stuck(waits)
    edges = {task: [on for on in waits[task].on if on in stuck] for task in stuck}
    rings = [ring for component in _components(edges) if (ring := _find_ring(component, edges))]
    deadlocks = [Deadlock(ring, _find_behind(ring, edges)) for ring in rings]
    return sorted(deadlocks, key=lambda deadlock: -len(deadlock.behind))


def find_stuck(waits: Graph) -> set[int]:
    """Return the tasks that no step of another one can ever let go on."""
    woken: dict[int, list[int]] = {}
    missing: dict[int, int] = {}
    ready: list[int] = []
    for task, wait in waits.items():
        within = [on for on in wait.on if on in waits]
        if wait.needs == "any":
            free = wait.open or len(within) < len(wait.on) or not within
            missing[task] = 0 if free else 1
        else:
            missing[task] = len(within)
        if missing[task]:
            for on in within:
                woken.setdefault(on, []).append(task)
        else:
            ready.append(task)
    while ready:
        for waiter in woken.get(ready.pop(), ()):
            missing[waiter] -= 1
            if missing[waiter] == 0:
                ready.append(waiter)
    return {task for task, count in missing.items() if count > 0}


def _components(edges: Mapping[int, list[int]]) -> Iterable[list[int]]:
    """Yield the strongly connected components (Tarjan), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    on_path: set[int] = set()
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        path.append(root)
        on_path.add(root)
        while work:
            node, following = work[-1]
            for each in following:
                if each not in index:
                    index[each] = low[each] = len(index)
                    path.append(each)
                    on_path.add(each)
                    work.append((each, iter(edges[each])))
                    break
                if each in on_path:
                    low[node] = min(low[node], index[each])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = [path.pop()]
                    while component[-1] != node:
                        component.append(path.pop())
                    on_path.difference_update(component)
                    yield component


def _find_ring(component: list[int], edges: Mapping[int, list[int]]) -> tuple[int, ...]:
    """Return a shortest ring through the first of a component's tasks; empty where it is in none."""
    within = set(component)
    start = min(component)
    came_from: dict[int, int] = {}
    level = [start]
    while level:
        following: list[int] = []
        for node in level:
            for each in edges[node]:
                if each == start:
                    ring = [node]
                    while ring[-1] != start:
                        ring.append(came_from[ring[-1]])
                    return tuple(reversed(ring))
                if each in within and each not in came_from:
                    came_from[each] = node
                    following.append(each)
        level = following
    return ()


def _find_behind(ring: tuple[int, ...], edges: Mapping[int, list[int]]) -> tuple[int, ...]:
    waiters: dict[int, list[int]] = {}
    for task, ons in edges.items():
        for on in ons:
            waiters.setdefault(on, []).append(task)
    found = set(ring)
    todo = list(ring)
    while todo:
        for waiter in waiters.get(todo.pop(), ()):
            if waiter not in found:
                found.add(waiter)
                todo.append(waiter)
    return tuple(sorted(found - set(ring)))
