"""What the routes of the service receive, as FastAPI dependencies."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from freeloop.database import Database
from freeloop.errors import Unauthorized
from freeloop.outbound import Client
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.state import State, current_state
from freeloop.threads import ThreadPool

CurrentState = Annotated[State, Depends(current_state)]
_bearer = HTTPBearer(auto_error=False, description="FREELOOP_TOKEN, where it is set.")


# All async: FastAPI runs each plain function in a thread, and slow sync code could starve them.
async def _database(state: CurrentState) -> Database:
    return state.database


async def _outbound(state: CurrentState) -> Client:
    return state.outbound


async def _sources(state: CurrentState) -> Mapping[str, str]:
    return state.sources


async def _changes(state: CurrentState) -> ChangeFeed:
    return state.changes


async def _threads(state: CurrentState) -> ThreadPool:
    return state.threads


async def require_token(
    state: CurrentState, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let the request pass where no token is set, or where it bears the right one.

    Raises:
        Unauthorized: The token is missing or wrong (401).
    """
    if state.token is None:
        return
    if given is None:
        raise Unauthorized(
            "The bearer token is missing",
            "This route needs the header 'Authorization: Bearer <FREELOOP_TOKEN>'.",
        )
    # compare_digest takes the same time wherever the first difference stands; bytes, since text
    # outside ASCII is refused by it.
    if not hmac.compare_digest(given.credentials.encode("utf-8", "surrogateescape"), state.token.encode()):
        raise Unauthorized("The bearer token is wrong", "The token that came is not FREELOOP_TOKEN.")


Db = Annotated[Database, Depends(_database)]
Out = Annotated[Client, Depends(_outbound)]
Sources = Annotated[Mapping[str, str], Depends(_sources)]
Changes = Annotated[ChangeFeed, Depends(_changes)]
Threads = Annotated[ThreadPool, Depends(_threads)]
