"""What the routes of the service receive, as FastAPI dependencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from freeloop.database import Database
from freeloop.gate.pages import check_token
from freeloop.kit import Freeloop
from freeloop.outbound import Client
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.state import State, current_state

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


async def _kit(state: CurrentState) -> Freeloop:
    return state.kit


async def require_token(
    state: CurrentState, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let the request pass where no token is set, or where it bears the right one.

    Raises:
        Unauthorized: The token is missing or wrong (401).
    """
    if state.token is None:
        return
    check_token(f"{given.scheme} {given.credentials}" if given else None, state.token)


Db = Annotated[Database, Depends(_database)]
Out = Annotated[Client, Depends(_outbound)]
Sources = Annotated[Mapping[str, str], Depends(_sources)]
Changes = Annotated[ChangeFeed, Depends(_changes)]
Kit = Annotated[Freeloop, Depends(_kit)]
