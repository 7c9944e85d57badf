"""What the routes of the service receive beside the kit's own, as FastAPI dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from freeloop.dependencies import find_kit
from freeloop.gate.tokens import Bearer, check_bearer
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.state import state_of


# All async: FastAPI runs each plain function in a thread, and slow sync code could starve them. And none
# asks for another, since each costs every request that it is solved for.
async def _changes(request: Request) -> ChangeFeed:
    return state_of(request).changes


async def require_token(request: Request, given: Bearer) -> None:
    """Let the request pass where no token is set, or where it bears the right one.

    Raises:
        Unauthorized: The token is missing or wrong (401).
    """
    check_bearer(given, find_kit(request).settings.bearer_token)


Changes = Annotated[ChangeFeed, Depends(_changes)]
