"""What a waiting request costs in memory."""

from __future__ import annotations

import time

from bench.load import Burst, count_unread
from bench.servers import Running, calmness


def measure_waiting(server: Running, path: str, count: int, seconds: float) -> float | None:
    """Return the bytes for each of ``count`` requests that wait at once; None: there was no such moment.

    Args:
        server: A server that answers ``path`` after ``seconds``.
        path: What is asked, once on each of ``count`` connections.
        count: How many.
        seconds: So long that all requests were read before half of it.
    """
    idle = server.memory()
    waiting: list[int] = []
    with Burst(server.port, path, count, timeout=60) as burst:
        burst.connect()
        server.wait_still()
        burst.send()
        is_calm = calmness(server)
        late = time.monotonic() + 0.5 * seconds

        def sample() -> None:
            # Everything read, hardly any CPU time used for a while, no answer yet: all requests wait. Calm
            # alone would not do: a server whose core is taken by another process looks calm, too.
            if is_calm() and not waiting and time.monotonic() > late and not count_unread(server.port):
                waiting.append(server.memory())

        burst.collect(sample)
    if burst.failures:
        raise RuntimeError(f"expected {count} waiting requests to be answered; {dict(burst.failures)}")
    return (waiting[0] - idle) / count if waiting else None


def warm_up(server: Running, path: str, count: int = 20) -> None:
    """Ask ``count`` times, so that what is loaded late is loaded."""
    with Burst(server.port, path, count, timeout=30) as burst:
        burst.connect()
        burst.send()
        burst.collect()
    server.wait_still()
