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


class HeldIdle(NamedTuple):
    """A line of code that waits for something else while a transaction of its own holds a connection.

    Attributes:
        place: The line, as ``file:line in function``.
        route: The route's template, or the name of a background function; empty outside of any scope.
        awaited: What it waits for: ``upstream``, ``thread``, another ``connection``; empty where that is not
            known and took over a second.
        transaction: The line that began the transaction.
        times: How often that was so.
        longest: For how long the connection was not used, in seconds, at most.
    """

    place: str
    route: str
    awaited: str
    transaction: str
    times: int
    longest: float
