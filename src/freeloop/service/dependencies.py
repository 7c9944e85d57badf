"""What the routes of the service receive beside the kit's own, as FastAPI dependencies."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Request

from freeloop.dependencies import find_kit
from freeloop.gate.tokens import token_needed
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.state import state_of


# All async: FastAPI runs each plain function in a thread, and slow sync code could starve them. And none
# asks for another, since each costs every request that it is solved for.
async def _changes(request: Request) -> ChangeFeed:
    return state_of(request).changes


Changes = Annotated[ChangeFeed, Depends(_changes)]
require_token: Final = token_needed(lambda request: find_kit(request).settings.bearer_token)
"""For the dependencies of a route: ``FREELOOP_TOKEN`` of the kit that the request has come through."""
