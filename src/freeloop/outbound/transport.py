"""The port between the client and whatever carries its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, quote, urlsplit

if TYPE_CHECKING:
    from freeloop.outbound.response import Response  # response.py imports this module


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundRequest:
    """One call, complete: a layer passes it on, or a changed copy (:func:`dataclasses.replace`).

    Attributes:
        method: In capitals.
        url: Absolute, http or https; credentials in it are sent as basic authentication.
        timeout: Seconds for the whole call, from waiting for a connection to the last byte of the body.
        max_body: The largest body of the answer, in bytes after decompression.
        headers: Sent as they are.
        content: The request's body; None for no body.
        source: The name of the configured source; None where the call has none.
    """

    method: str
    # Not in the repr: they carry credentials.
    url: str = field(repr=False)
    timeout: float
    max_body: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes | None = field(default=None, repr=False)
    source: str | None = None

    @property
    def name(self) -> str:
        """How errors and logs call it: source, method and URL, without credentials and query values."""
        call = f"{self.method} {redact_url(self.url)}"
        return call if self.source is None else f"source '{self.source}' ({call})"


class Transport(Protocol):
    """Carries calls. The contract, for a real transport and a layer alike.

    - ``send`` answers or raises within ``request.timeout`` seconds and never holds more than
      ``request.max_body`` bytes of the body;
    - an answer with any status is a :class:`Response`; only a call without a complete answer raises;
    - a cancelled ``send`` gives back everything it took, the upstream's socket too.
    """

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request and return the complete answer.

        Raises:
            OutboundError: One of its subclasses, as :mod:`freeloop.errors` draws them.
            ValueError: The request itself is not sendable, such as a URL without a host.
        """
        ...

    async def close(self) -> None:
        """Give back every connection; bounded, and without effect the second time."""
        ...


def redact_url(url: str) -> str:
    """Return ``url`` without user, password, fragment and the values of its query."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return "(a malformed URL)"
    if not parts.scheme or not host:
        return "(a URL without scheme or host)"
    if ":" in host:
        host = f"[{host}]"
    # A key without a value may be a token itself: `?s3cr3t`. It is hidden like a value.
    keys = [key for key, value in parse_qsl(parts.query, keep_blank_values=True) if value]
    query = "&".join(f"{quote(key)}=…" for key in keys) or ("…" if parts.query else "")
    return f"{parts.scheme}://{host}{port}{parts.path}{'?' if query else ''}{query}"
