"""What the routes of the service receive beside the kit's own, as FastAPI dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from freeloop.gate.pages import check_token
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.state import state_of

_bearer = HTTPBearer(auto_error=False, description="FREELOOP_TOKEN, where it is set.")


# All async: FastAPI runs each plain function in a thread, and slow sync code could starve them. And none
# asks for another, since each costs every request that it is solved for.
async def _changes(request: Request) -> ChangeFeed:
    return state_of(request).changes


async def require_token(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let the request pass where no token is set, or where it bears the right one.

    Raises:
        Unauthorized: The token is missing or wrong (401).
    """
    token = state_of(request).token
    if token is not None:
        check_token(f"{given.scheme} {given.credentials}" if given else None, token)


Changes = Annotated[ChangeFeed, Depends(_changes)]
