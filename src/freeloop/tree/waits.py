"""What a task waits for, and for how long, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from freeloop.tree.model import Holder

_MOST: Final = 3  # names in a sentence

PHRASES: Final[dict[str, str]] = {
    "sleep": "a timer",
    "task": "{tasks}",
    "tasks": "{tasks}",
    "group": "the end of its task group: {tasks}",
    "lock": "{name}",
    "semaphore": "a permit of {name}",
    "limiter": "a token of {name}",
    "event": "{name} to be set",
    "condition": "a notification of {name}",
    "barrier": "the others at {name}",
    "queue-get": "an item of {name}",
    "queue-put": "room in {name}",
    "queue-join": "all items of {name} to be done",
    "data": "data from {name}",
    "drain": "{name} to read what was sent",
    "socket": "the socket to {name}",
    "connections": "connections of clients",
    "process": "process {name} to end",
    "thread": "a thread",
    "thread-place": "a free thread of pool {name}",
    "connection": "a connection of pool {name}",
    "statement": "PostgreSQL: {name}",
    "postgres": "a new connection to PostgreSQL",
    "upstream": "the answer to {name}",
    "turn": "its turn to send {name}",
    "shared": "the answer to {name}, which others have asked for too",
    "client": "the client to send more, or to leave",
    "client-reads": "the client to read what was sent",
    "gate": "its turn at the gate of {name}",
    "future": "a future",
}
"""A phrase for each kind of wait, to stand behind 'waits for'."""

CLAUSES: Final[dict[str, str]] = {
    "held": "{wait}, held by {holders}",
    "stands": "{wait}, now at {place}",
    "runs": "{wait} that runs {function}",
    "all": "all of {tasks}",
    "any": "the first of {tasks}",
}
"""What is said around a phrase."""

NAMES: Final[dict[str, str]] = {
    "more": "{names} and {count} more",
    "two": "{names} and {last}",
    "at": "{holder} at {place}",
    "since": "{holder} for {lasted}",
    "somebody": "somebody",
    "thread": "a thread",
    "unknown": "something unknown",
}
"""How tasks and holders are enumerated and described."""


def describe_wait(
    kind: str, name: str, *, needs: str, tasks: Sequence[str], holders: Sequence[Holder], more: int = 0
) -> str:
    """Return what is waited for in words.

    Args:
        kind: A key of :data:`PHRASES`.
        name: Which one.
        needs: ``all`` or ``any`` of the tasks.
        tasks: The names of the tasks whose end is waited for.
        holders: Who holds it.
        more: How many hold it that are not among them.
    """
    words = PHRASES[kind].format(name=name, tasks=_enumerate(tasks) or NAMES["unknown"])
    if kind == "tasks" and len(tasks) != 1:
        words = CLAUSES[needs].format(tasks=words)
    if kind == "thread" and name:
        words = CLAUSES["runs"].format(wait=words, function=name)
    if holders and kind == "thread":
        return CLAUSES["stands"].format(wait=words, place=holders[0].place)
    if holders:
        names = _enumerate([_describe(holder) for holder in holders], more)
        return CLAUSES["held"].format(wait=words, holders=names)
    return words


def _describe(holder: Holder) -> str:
    words = holder.name or NAMES["somebody"]
    if holder.seconds is not None:
        words = NAMES["since"].format(holder=words, lasted=say_seconds(holder.seconds))
    return NAMES["at"].format(holder=words, place=holder.place) if holder.place else words


def _enumerate(names: Sequence[str], more: int = 0) -> str:
    shown = names[:_MOST]
    rest = len(names) - len(shown) + more
    if rest:
        return NAMES["more"].format(names=", ".join(shown), count=rest)
    if len(shown) > 1:
        return NAMES["two"].format(names=", ".join(shown[:-1]), last=shown[-1])
    return "".join(shown)


def say_seconds(seconds: float | None) -> str:
    """Say a duration in three digits at most: ``1.2 ms``, ``4.0 s``, ``3 min 20 s``; None: a dash."""
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.3g} ms" if seconds >= 0.0001 else "0 ms"
    if seconds < 99.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
