"""What is wrong now, in sentences: each a check over what was read. Pure; the words are the console's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from freeloop.insights.answers import Borrowed, Snapshot

Severity: TypeAlias = Literal["bad", "warning"]

_ERRORS: Final = 0.05  # of the requests of the last seconds, from which on failures are told
_FEW: Final = 5  # failures in that time, below which a share says nothing
_LONG: Final = 10.0  # seconds that a connection may lie unused


@dataclass(frozen=True, slots=True)
class Sentence:
    """Something that is wrong.

    Attributes:
        code: Which sentence, a key of the console's catalogue: ``diagnosis.<code>``.
        severity: ``bad``: requests suffer now; ``warning``: they may soon.
        page: The page of the console that tells more.
        values: What the sentence names; seconds as numbers under names that end in ``seconds``.
    """

    code: str
    severity: Severity
    page: str
    values: dict[str, str | int | float] = field(default_factory=dict)


def diagnose(snapshot: Snapshot) -> tuple[Sentence, ...]:
    """Return what is wrong, the worst first; empty: nothing is."""
    found = [sentence for check in _CHECKS for sentence in check(snapshot)]
    return tuple(sorted(found, key=lambda sentence: sentence.severity != "bad"))


def _silent(snapshot: Snapshot) -> Iterator[Sentence]:
    for process in snapshot.silent:
        yield Sentence("silent", "bad", "tree", {"process": process})


def _hung(snapshot: Snapshot) -> Iterator[Sentence]:
    for process in snapshot.hung:
        yield Sentence("hung", "bad", "tree", {"process": process})


def _deadlock(snapshot: Snapshot) -> Iterator[Sentence]:
    for tasks, behind in snapshot.deadlocks:
        yield Sentence("deadlock", "bad", "tree", {"tasks": tasks, "behind": behind})


def _unread(snapshot: Snapshot) -> Iterator[Sentence]:
    if snapshot.unread:
        yield Sentence("unread", "warning", "tree", {"error": snapshot.unread})


def _blocked(snapshot: Snapshot) -> Iterator[Sentence]:
    for block in snapshot.blocks[:2]:
        values: dict[str, str | int | float] = {
            "route": block.route or "(none)",
            "place": block.place,
            "seconds": block.longest,
            "times": block.times,
            "process": block.process,
        }
        yield Sentence("blocking" if block.goes_on else "blocked", "bad", "blocks", values)


def _pool(snapshot: Snapshot) -> Iterator[Sentence]:
    for pool in snapshot.pools:
        if not pool.waiting or pool.lent < pool.size:
            continue
        holder, held = _most_held(pool.leases)
        values: dict[str, str | int | float] = {
            "pool": pool.name,
            "size": pool.size,
            "lent": pool.lent,
            "waiting": pool.waiting,
        }
        if holder is None:
            yield Sentence("pool_empty", "bad", "database", values)
        else:
            values |= {"route": holder.route, "held": held, "seconds": holder.seconds}
            yield Sentence("pool_empty_by", "bad", "database", values)


def _most_held(leases: tuple[Borrowed, ...]) -> tuple[Borrowed | None, int]:
    """Return the longest lease of the route that holds the most, and how many it holds."""
    routes: dict[str, list[Borrowed]] = {}
    for lease in leases:
        if lease.route:
            routes.setdefault(lease.route, []).append(lease)
    if not routes:
        return None, 0
    most = max(routes.values(), key=len)
    return max(most, key=lambda lease: lease.seconds), len(most)


def _idle(snapshot: Snapshot) -> Iterator[Sentence]:
    for pool in snapshot.pools:
        for lease in pool.leases:
            if lease.idle is not None and lease.idle > _LONG:
                values: dict[str, str | int | float] = {
                    "route": lease.route or "(none)",
                    "place": lease.place,
                    "seconds": lease.idle,
                }
                yield Sentence("held_idle", "warning", "database", values)
                break  # the longest one of a pool says enough


def _shed(snapshot: Snapshot) -> Iterator[Sentence]:
    # Where it had a limit and has none now, the overload has just gone.
    refusing = [load for load in snapshot.routes if load.lately and (load.full or load.limit is not None)]
    if not refusing:
        return
    worst = max(refusing, key=lambda load: load.lately)
    values: dict[str, str | int | float] = {"route": worst.route or "(none)", "shed": worst.lately}
    if worst.limit is None:
        yield Sentence("full", "bad", "requests", values)
    else:
        values |= {"running": worst.running, "limit": worst.limit}
        yield Sentence("shedding", "bad", "requests", values)


def _breakers(snapshot: Snapshot) -> Iterator[Sentence]:
    told = set()
    for breaker in snapshot.breakers:
        if breaker.upstream not in told:
            told.add(breaker.upstream)
            values: dict[str, str | int | float] = {"upstream": breaker.upstream, "seconds": breaker.seconds}
            yield Sentence("breaker_open" if breaker.seconds else "breaker_due", "bad", "upstreams", values)


def _errors(snapshot: Snapshot) -> Iterator[Sentence]:
    requests = sum(sample.requests for sample in snapshot.samples)
    errors = sum(sample.errors for sample in snapshot.samples) - sum(s.shed for s in snapshot.samples)
    if errors >= _FEW and errors >= _ERRORS * requests:
        route = snapshot.failed[0][0] if snapshot.failed else "(none)"
        yield Sentence("failing", "bad", "requests", {"errors": errors, "requests": requests, "route": route})


def _tasks(snapshot: Snapshot) -> Iterator[Sentence]:
    for name, error, count in snapshot.task_failures:
        yield Sentence("tasks_failed", "warning", "tasks", {"name": name, "error": error, "count": count})
    waiting = snapshot.samples[-1].tasks if snapshot.samples else None
    if waiting and snapshot.workers == 0:
        yield Sentence("no_worker", "bad", "tasks", {"waiting": waiting})


_CHECKS: Final[tuple[Callable[[Snapshot], Iterator[Sentence]], ...]] = (
    _silent,
    _hung,
    _deadlock,
    _unread,
    _blocked,
    _pool,
    _shed,
    _breakers,
    _errors,
    _idle,
    _tasks,
)
