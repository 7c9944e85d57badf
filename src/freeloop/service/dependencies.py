"""What the routes of the service receive, as FastAPI dependencies over the lifespan's state."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from freeloop.database import Database
from freeloop.errors import Unauthorized
from freeloop.outbound import Client
from freeloop.service.items.feed import ChangeFeed
from freeloop.threads import ThreadPool

# All async: FastAPI would run each plain function in a thread, and slow sync code could starve them.
_bearer = HTTPBearer(auto_error=False, description="FREELOOP_TOKEN, where it is set.")


async def _database(request: Request) -> Database:
    return cast("Database", request.state.database)


async def _outbound(request: Request) -> Client:
    return cast("Client", request.state.outbound)


async def _sources(request: Request) -> Mapping[str, str]:
    return cast("Mapping[str, str]", request.state.sources)


async def _changes(request: Request) -> ChangeFeed:
    return cast("ChangeFeed", request.state.changes)


async def _threads(request: Request) -> ThreadPool:
    return cast("ThreadPool", request.state.threads)


async def require_token(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let the request pass where no token is set, or where it bears the right one.

    Raises:
        Unauthorized: The token is missing or wrong (401).
    """
    token = cast("str | None", request.state.token)
    if token is None:
        return
    if given is None:
        raise Unauthorized(
            "The bearer token is missing",
            "This route needs the header 'Authorization: Bearer <FREELOOP_TOKEN>'.",
        )
    # compare_digest takes the same time wherever the first difference stands; bytes, since text
    # outside ASCII is refused by it.
    if not hmac.compare_digest(given.credentials.encode("utf-8", "surrogateescape"), token.encode()):
        raise Unauthorized("The bearer token is wrong", "The token that came is not FREELOOP_TOKEN.")


Db = Annotated[Database, Depends(_database)]
Out = Annotated[Client, Depends(_outbound)]
Sources = Annotated[Mapping[str, str], Depends(_sources)]
Changes = Annotated[ChangeFeed, Depends(_changes)]
Threads = Annotated[ThreadPool, Depends(_threads)]
