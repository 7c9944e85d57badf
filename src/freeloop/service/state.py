"""What the service's requests find beside the kit, as one typed object that the lifespan yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import Request

from freeloop.outbound import Client
from freeloop.service.items.feed import ChangeFeed


@dataclass(frozen=True, slots=True)
class State:
    """What is the service's own. One object, since each request gets a copy of the lifespan's entries.

    Attributes:
        sources: The configured external APIs, name to URL; the first is the default.
        outbound: The kit's client for external APIs.
        changes: The feed of item changes.
    """

    sources: Mapping[str, str]
    outbound: Client
    changes: ChangeFeed


def state_of(request: Request) -> State:
    """Return the state."""
    return cast("State", request.state.service)
