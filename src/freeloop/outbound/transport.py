"""The port between the client and whatever carries its calls."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from urllib.parse import parse_qsl, quote, urlsplit

if TYPE_CHECKING:
    from freeloop.outbound.response import Response  # response.py imports this module

Content: TypeAlias = bytes | AsyncIterable[bytes]
"""The body of a request: at once, or in parts that are taken as fast as the upstream takes them."""

SHORTEST: Final = 0.001  # s: what is left of no time, since a transport takes 0 for "no limit"
# RFC 9110, section 9.2.2. TRACE, which is one too, has no business here.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundRequest:
    """One call, complete: a layer passes it on, or a changed copy (:func:`dataclasses.replace`).

    Attributes:
        method: In capitals.
        url: Absolute, http or https; credentials in it are sent as basic authentication.
        timeout: Seconds for the whole call, from waiting for a connection to the last byte of the body; where
            the answer is streamed, to the end of its head.
        max_body: The largest body of the answer, in bytes after decompression.
        headers: Sent as they are.
        content: The request's body; None for no body. Parts can be sent only once.
        source: The name of the configured source; None where the call has none.
        public_only: Whether only addresses of the public internet may be connected; set by
            :class:`freeloop.outbound.url_policy.UrlGuard`. Another one raises ``UrlRefused``.
        idempotent: Whether it may be sent again where its answer is lost or late; None: by its method.
        stream: Whether the answer is given once its head is there, with its body still to come.
        connect_timeout: Seconds until a connection stands, of those for the call; None: all of them.
    """

    method: str
    # Not in the repr: they carry credentials.
    url: str = field(repr=False)
    timeout: float
    max_body: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: Content | None = field(default=None, repr=False)
    source: str | None = None
    public_only: bool = False
    idempotent: bool | None = None
    stream: bool = False
    connect_timeout: float | None = None

    @property
    def in_parts(self) -> bool:
        """Whether its body is given in parts, which can be sent only once."""
        return not (self.content is None or isinstance(self.content, bytes))

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again, as far as its caller, its method and its body say."""
        if self.in_parts:
            return False
        return self.method in _IDEMPOTENT if self.idempotent is None else self.idempotent

    def within(self, seconds: float) -> OutboundRequest:
        """Return the same call with so many seconds for it."""
        # dataclasses.replace() takes four times as long, and many a call needs this.
        copy = object.__new__(OutboundRequest)
        for put, value in zip(_PUT, _GET(self), strict=True):
            put(copy, value)
        _PUT_TIMEOUT(copy, seconds)
        return copy

    @property
    def upstream(self) -> str:
        """Whom it calls: the source, or ``https://host:port`` where it has none."""
        return self.source or origin_of(self.url)

    @property
    def name(self) -> str:
        """How errors and logs call it: source, method and URL, without credentials and query values."""
        call = f"{self.method} {redact_url(self.url)}"
        return call if self.source is None else f"source '{self.source}' ({call})"


# Around the class's own __setattr__, which refuses.
_GET: Final = attrgetter(*OutboundRequest.__slots__)
_PUT: Final = tuple(vars(OutboundRequest)[name].__set__ for name in OutboundRequest.__slots__)
_PUT_TIMEOUT: Final = vars(OutboundRequest)["timeout"].__set__


class Transport(Protocol):
    """Carries calls. The contract, for a real transport and a layer alike.

    - ``send`` answers or raises within ``request.timeout`` seconds and never holds more than
      ``request.max_body`` bytes of the body;
    - an answer with any status is a :class:`Response`; only a call without a complete answer raises;
    - where ``request.stream`` asks for it, the answer comes with its head, and its ``body`` raises later; a
      layer that holds something for the call holds it until the body is over, and one that drops the answer
      closes it;
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


@lru_cache(maxsize=1000)
def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL, without credentials; each layer asks, so the answer is kept."""
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0].partition("?")[0].partition("#")[0]
    return f"{scheme}://{authority.rpartition('@')[2]}".lower()


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
