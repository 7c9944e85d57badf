"""The request scope: what one unit of work is called, when it began, and how to find it from anywhere.

Every HTTP request runs in a :class:`Scope`. It is the ground floor: any room may import it, and it imports
none of them.
"""

from __future__ import annotations

import random
import re
import time
from contextvars import ContextVar
from typing import Final

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~-]{1,128}")
# W3C Trace Context: version-traceid-parentid-flags, lower-case hex, an all-zero trace id is invalid.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


class Scope:
    """One unit of work.

    Attributes:
        id: The request id: printable ASCII, at most 128 characters; echoed in ``X-Request-ID``.
        started: When it began, in seconds of :func:`time.perf_counter`.
    """

    __slots__ = ("id", "started")

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.started = time.perf_counter()


_current: ContextVar[Scope | None] = ContextVar("freeloop_scope", default=None)


def current_scope() -> Scope | None:
    """Return the scope that this code runs under, or None outside every request."""
    return _current.get()


def enter_scope(scope: Scope) -> None:
    """Make ``scope`` the current one for the rest of the running task and for the tasks it starts."""
    _current.set(scope)


def choose_request_id(request_id: bytes | None, traceparent: bytes | None) -> str:
    """Return the caller's request id where it is valid, else its trace id, else a new one.

    Args:
        request_id: The value of ``X-Request-ID``, or None. Valid: 1 to 128 of ``A-Z a-z 0-9 . _ ~ -``.
        traceparent: The value of ``traceparent`` (W3C Trace Context), or None.
    """
    if request_id is not None and _REQUEST_ID.fullmatch(request_id):
        return request_id.decode("ascii")
    if traceparent is not None and (match := _TRACEPARENT.fullmatch(traceparent)):
        return match[1].decode("ascii")
    # An id has to be unique, not secret: the fast generator serves.
    return f"{random.getrandbits(128):032x}"
