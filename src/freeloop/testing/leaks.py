"""What a test leaves behind: tasks that run on, leases that nobody gave back, connections that are open."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any, Final

import aiohttp
import asyncpg

from freeloop.scope import Lease, describe_task

_INTERVAL: Final = 0.02  # seconds between two looks


class Held:
    """What is lent and open at one moment, over the whole process."""

    def __init__(self) -> None:
        # By their types: isinstance would call asyncpg, in Python, for each object there is.
        found = [each for each in gc.get_objects() if issubclass(type(each), _KINDS)]
        self.leases = {id(each): each for each in found if isinstance(each, Lease) and each.held}
        self.connections = {
            id(each): each for each in found if not isinstance(each, Lease) and not _is_closed(each)
        }


_KINDS: Final = (Lease, asyncpg.Connection, aiohttp.ClientSession)


def list_tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks of the running loop."""
    return asyncio.all_tasks()


async def list_leaks(tasks: set[asyncio.Task[Any]], before: Held, *, within: float) -> list[str]:
    """Return a line for each thing that is there and was not before, once what ends by itself has ended.

    Args:
        tasks: The tasks that were there before.
        before: What was held before.
        within: Seconds that what ends by itself may take.
    """
    if not _compare(tasks, before):
        return []
    gc.collect()  # what is only not collected yet is left by nobody
    until = time.monotonic() + within
    while (leaks := _compare(tasks, before)) and time.monotonic() < until:
        await asyncio.sleep(_INTERVAL)
        gc.collect()
    return leaks


def _compare(tasks: set[asyncio.Task[Any]], before: Held) -> list[str]:
    now = Held()
    # anyio's own tasks run the test.
    running = [
        each
        for each in list_tasks() - tasks - {asyncio.current_task()}
        if not each.done() and not getattr(each.get_coro(), "__qualname__", "").startswith("TestRunner.")
    ]
    return [
        *(f"task '{each.get_name()}':\n{describe_task(each)}" for each in running),
        *(
            f"{lease.kind} of '{lease.name}', lent by {lease.place or 'nobody known'}"
            for key, lease in now.leases.items()
            if key not in before.leases
        ),
        *(
            f"{type(each).__module__}.{type(each).__qualname__}, open"
            for key, each in now.connections.items()
            if key not in before.connections
        ),
    ]


def _is_closed(connection: Any) -> bool:  # noqa: ANN401 - asyncpg's and aiohttp's have nothing else in common
    closed: Any = getattr(connection, "is_closed", None)
    return bool(closed()) if closed is not None else bool(connection.closed)
