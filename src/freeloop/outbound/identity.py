"""Which calls are the same, so that one answer serves both. Where that cannot be told, they are not.

All headers count, since credentials go by any name (``X-Api-Key``) and an upstream may answer differently for
any of them, whatever its ``Vary`` says. Only those are left out that belong to one call alone.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from freeloop.outbound.transport import OutboundRequest

Identity: TypeAlias = tuple[str, str, str | None, bool, tuple[tuple[str, str], ...]]

# Of one connection (RFC 9110, section 7.6.1), or the name of one call in traces and logs.
OF_ONE_CALL: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"),
        *("x-b3-sampled", "x-amzn-trace-id", "x-cloud-trace-context", "x-request-id", "x-correlation-id"),
    }
)

# RFC 9110, section 9.2.1: what changes nothing.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def identify(request: OutboundRequest, but: frozenset[str] = OF_ONE_CALL) -> Identity:
    """Return what is equal for two calls of one method only where one answer serves both.

    Args:
        request: A call without a body.
        but: Names of headers that do not count, in lower case.

    Returns:
        A tuple that begins with what :func:`target_of` returns.
    """
    headers = [(name.lower(), value) for name, value in request.headers.items()]
    counting = [header for header in headers if header[0] not in but]
    if len(counting) > 1:
        counting.sort()
    # The whole URL too: it may hold credentials.
    return (
        target_of(request.url),
        request.url,
        request.source,
        request.public_only,
        tuple(counting),
    )


def target_of(url: str) -> str:
    """Return a URL without credentials and fragment: what a write to it changes, whoever makes it."""
    scheme, _, rest = url.partition("#")[0].partition("://")
    authority, slash, path = rest.partition("/")
    return (
        f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
        if "@" in authority
        else f"{scheme}://{rest}"
    )
