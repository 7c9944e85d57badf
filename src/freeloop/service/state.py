"""What the service's requests find, as one typed object that the lifespan yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import Request

from freeloop.database import Database
from freeloop.kit import Freeloop
from freeloop.outbound import Client
from freeloop.service.items.feed import ChangeFeed


@dataclass(frozen=True, slots=True)
class State:
    """The open resources. One object and not nine entries, since each request gets a copy of the entries.

    Attributes:
        database: The pool.
        outbound: The client for external APIs.
        sources: The configured external APIs, name to URL; the first is the default.
        changes: The feed of item changes.
        kit: The kit around the service.
        token: The bearer token that writes need, or None.
    """

    database: Database
    outbound: Client
    sources: Mapping[str, str]
    changes: ChangeFeed
    kit: Freeloop
    token: str | None


async def current_state(request: Request) -> State:
    """Return the state, as a FastAPI dependency."""
    return cast("State", request.state.service)
