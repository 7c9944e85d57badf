"""The bearer token ``FREELOOP_TOKEN``: how it is compared, and what asks the caller of a route for it."""

from __future__ import annotations

import hmac
from typing import Annotated, cast

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from freeloop.errors import Unauthorized

Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, description="FREELOOP_TOKEN, where it is set.")),
]
"""What the caller of a route bears, as a parameter of it."""


def token_needed(token: str | None) -> Dependency:
    """Return a dependency that lets a request pass where it bears the token, or none is set."""

    async def check(given: Bearer) -> None:
        check_bearer(given, token)

    return cast("Dependency", Depends(check))


def check_bearer(given: HTTPAuthorizationCredentials | None, token: str | None) -> None:
    """Check what the caller bears.

    Args:
        given: That, or None: nothing.
        token: As of :func:`check_token`.

    Raises:
        Unauthorized: As of :func:`check_token`.
    """
    check_token(f"{given.scheme} {given.credentials}" if given else None, token)


def check_token(authorization: str | None, token: str | None) -> None:
    """Compare a bearer token in constant time.

    Args:
        authorization: The header ``Authorization``, or None.
        token: The right one; None: any request passes.

    Raises:
        Unauthorized: It is missing or wrong (401).
    """
    if token is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise Unauthorized(
            "The bearer token is missing",
            "This route needs the header 'Authorization: Bearer <FREELOOP_TOKEN>'.",
        )
    # compare_digest takes the same time wherever the first difference stands; bytes, since text
    # outside ASCII is refused by it.
    if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode()):
        raise Unauthorized("The bearer token is wrong", "The token that came is not FREELOOP_TOKEN.")
