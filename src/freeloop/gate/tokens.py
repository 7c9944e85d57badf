"""The bearer token ``FREELOOP_TOKEN``: how it is compared, and what asks the caller of a route for it."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated, Final, cast

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from freeloop.errors import Unauthorized

_BEARER: Final = HTTPBearer(auto_error=False, description="FREELOOP_TOKEN, where it is set.")


def token_needed(find: Callable[[Request], str | None]) -> Dependency:
    """Return a dependency that lets a request pass which bears the token, and refuses any other with 401.

    Args:
        find: Returns the right token; None: any request passes.
    """

    async def check(
        request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        check_token(f"{given.scheme} {given.credentials}" if given else None, find(request))

    return cast("Dependency", Depends(check))


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
    given = read_bearer(authorization)
    if not given:
        raise Unauthorized(
            "The bearer token is missing",
            "This route needs the header 'Authorization: Bearer <FREELOOP_TOKEN>'.",
        )
    if not is_same(given, token):
        raise Unauthorized("The bearer token is wrong", "The token that came is not FREELOOP_TOKEN.")


def read_bearer(authorization: str | None) -> str:
    """Return the token that a header ``Authorization`` bears; empty: none."""
    scheme, _, given = (authorization or "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def is_same(given: str, secret: str) -> bool:
    """Return whether what came is the secret, in a time that does not tell where they differ."""
    # Bytes, since compare_digest refuses text outside ASCII.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode())
