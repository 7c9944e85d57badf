"""What the service's requests find, as one typed object that the lifespan yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import Request

from freeloop.database import Database
from freeloop.metrics import Metrics
from freeloop.outbound import Client
from freeloop.service.items.feed import ChangeFeed
from freeloop.threads import ThreadPool


@dataclass(slots=True)
class State:
    """The open resources. One object and not nine entries, since each request gets a copy of the entries.

    Attributes:
        database: The pool.
        outbound: The client for external APIs.
        sources: The configured external APIs, name to URL; the first is the default.
        changes: The feed of item changes.
        threads: The threads of ``/sync-task``.
        metrics: What ``/metrics`` shows.
        token: The bearer token that writes need, or None.
        draining: Whether the shutdown has begun.
    """

    database: Database
    outbound: Client
    sources: Mapping[str, str]
    changes: ChangeFeed
    threads: ThreadPool
    metrics: Metrics
    token: str | None
    draining: bool = False

    def drain(self) -> None:
        """Begin the shutdown: readiness turns, and streams end, so that nobody waits for them."""
        self.draining = True
        self.changes.stop()


async def current_state(request: Request) -> State:
    """Return the state, as a FastAPI dependency."""
    return cast("State", request.state.service)
