"""What a task waits for, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from freeloop.tree.model import Holder

_MOST: Final = 3  # names in a sentence

PHRASES: Final[dict[str, str]] = {
    "sleep": "a timer",
    "task": "{tasks}",
    "tasks": "{which} {tasks}",
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
    which = "" if len(tasks) == 1 else "all of" if needs == "all" else "the first of"
    words = (
        PHRASES[kind].format(name=name, which=which, tasks=_enumerate(tasks) or "something unknown").strip()
    )
    if kind == "thread" and name:
        words += f" that runs {name}"
    if holders and kind == "thread":
        return f"{words}, now at {holders[0].place}"
    if holders:
        return f"{words}, held by {_enumerate([_describe(holder) for holder in holders], more)}"
    return words


def _describe(holder: Holder) -> str:
    seconds = "" if holder.seconds is None else f" for {format_seconds(holder.seconds)}"
    place = f" at {holder.place}" if holder.place else ""
    return f"{holder.name or 'somebody'}{seconds}{place}"


def _enumerate(names: Sequence[str], more: int = 0) -> str:
    shown = names[:_MOST]
    rest = len(names) - len(shown) + more
    if rest:
        return f"{', '.join(shown)} and {rest} more"
    if len(shown) > 1:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return "".join(shown)


def format_seconds(seconds: float) -> str:
    """Return seconds as people read them: ``35 ms``, ``2.4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
