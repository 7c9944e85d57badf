"""The trace that a call belongs to, in the words of W3C Trace Context (https://www.w3.org/TR/trace-context/).

We record no spans of our own: what an upstream notes as its parent is an id that stands in no record, and the
trace is the one that our caller named. Where it named none, the trace id is the id in our logs.
"""

from __future__ import annotations

import random
import re
from hashlib import blake2b
from typing import Final

from freeloop.scope import Scope, current_scope

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
# We record nothing. The standard wants 0 by default from whoever begins a trace (section 3.2.2.5.1).
_NOT_SAMPLED: Final = "00"


def add_trace(headers: dict[str, str]) -> None:
    """Add ``traceparent`` and ``tracestate`` of the current scope, unless there is a ``traceparent``.

    Args:
        headers: Those of a call, by names in any case.
    """
    scope = current_scope()
    if scope is None or any(name.lower() == "traceparent" for name in headers):
        return
    trace = scope.trace
    span = f"{random.getrandbits(64) | 1:016x}"  # unique, not secret; zero is not allowed
    if trace is None:
        headers["traceparent"] = f"00-{_make_id(scope)}-{span}-{_NOT_SAMPLED}"
        return
    headers["traceparent"] = f"00-{trace.id}-{span}-{trace.flags}"
    if trace.state:
        headers["tracestate"] = trace.state


def _make_id(scope: Scope) -> str:
    """Return the scope's id, or where that is no trace's, what is the same for all calls of the scope."""
    if _TRACE_ID.fullmatch(scope.id):
        return scope.id
    return blake2b(scope.id.encode(), digest_size=16).hexdigest()
