"""Frozen records of what happened, for logs, metrics and insights alike.

Any room may import it; it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class RequestRecord(NamedTuple):
    """One HTTP request that has ended.

    Attributes:
        request_id: The id of its scope.
        method: The HTTP method.
        path: The path as it came, without the query, which may hold secrets.
        route: The route's template such as ``/items/{item_id}``; empty where no route matched.
        status: The HTTP status; 499 where the request ended without one.
        duration: Seconds from its arrival to its last byte.
        client: The client's address, or empty.
        cause: Why it was cancelled: ``deadline``, ``disconnect`` or ``shutdown``; empty: it was not.
        times: Where the time went, in seconds by class; see :mod:`freeloop.ledger`.
    """

    request_id: str
    method: str
    path: str
    route: str
    status: int
    duration: float
    client: str
    cause: str = ""
    times: Mapping[str, float] = MappingProxyType({})
