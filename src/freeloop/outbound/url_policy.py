"""Where calls may go, for URLs that a user supplies.

Two questions, at two times. What the URL says is judged before the call, and on every hop of a redirect:
:class:`UrlPolicy`. Where its host's name leads is known only when it is connected, and may be another place
than a moment ago (DNS rebinding): so the transport judges each address right before it connects it
(``public_only``), and the layer here asks it to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from freeloop.errors import UrlRefused
from freeloop.outbound.addresses import is_public
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport, origin_of
from freeloop.outbound.urls import parse_url

# Where parsers differ, an attacker has one read what the other does not see.
_AMBIGUOUS: Final = re.compile(r"[\x00-\x20\x7f\\]")
_AUTHORITY: Final = re.compile(r"[^:/?#]+://([^/?#]+)")
# A name in its encoded form; the underscore is no host's by RFC 952, and many a host's in fact.
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# What the URL standard takes for a number: then the whole host is an IPv4 address in some spelling.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
# RFC 6761, 6762, 7686, 8375, 9476 and ICANN's reservation of .internal.
_LOCAL: Final = frozenset({"localhost", "local", "internal", "onion", "alt", "test", "invalid", "example"})
_LONGEST_NAME: Final = 253
_LONGEST_URL: Final = 8000  # characters; what RFC 9110, section 4.1, asks everybody to support
_DEFAULT_PORTS: Final = frozenset({80, 443})


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What a URL may say. Pure: it looks nothing up.

    Args:
        schemes: Of ``http`` and ``https``, those allowed.
        ports: Those allowed; None for all. The default keeps calls away from the ports of mail servers,
            databases and the like, which may understand enough of HTTP to do harm.
    """

    schemes: Collection[str] = frozenset({"http", "https"})
    ports: Collection[int] | None = _DEFAULT_PORTS

    def objection(self, url: str) -> str | None:
        """Say what was expected of the URL and did not hold; None where it may be called."""
        authority = _AUTHORITY.match(url)
        if authority is None or _AMBIGUOUS.search(url) or len(url) > _LONGEST_URL:
            return (
                "expected an absolute URL, without spaces, control characters and backslashes, of at most "
                f"{_LONGEST_URL:,} characters"
            )
        if "@" in authority[1]:
            return "expected a URL without credentials"
        try:
            # As the call will be made: full-width digits are decoded, and IDNA is encoded.
            parts = parse_url(url)
        except ValueError:
            return "expected a URL, and it cannot be parsed as one"
        if parts.scheme not in self.schemes:
            return f"expected the scheme {' or '.join(sorted(self.schemes))}"
        if self.ports is not None and parts.port not in self.ports:
            return f"expected the port {' or '.join(map(str, sorted(self.ports)))}"
        return _object_to_host(parts.raw_host or "", bracketed="[" in authority[1])


class UrlGuard:
    """The layer that refuses what the policy objects to, below the one that follows redirects.

    Args:
        transport: What carries the calls that may go.
        policy: What a URL may say; the default policy, where left out.
        exempt: The configured sources, each name with its URL: that comes from the operator, and may lead
            anywhere. A call with such a name is exempt where it goes to the origin of that URL; one to
            another origin, by a redirect or by its caller, is judged like any other.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        policy: UrlPolicy | None = None,
        exempt: Mapping[str, str] | None = None,
    ) -> None:
        self._transport = transport
        self._policy = policy or UrlPolicy()
        self._exempt = {name: origin_of(url) for name, url in (exempt or {}).items()}

    # Not async: it has nothing to wait for, and every call would pay for a frame.
    def send(self, request: OutboundRequest) -> Coroutine[Any, Any, Response]:
        """Send the request where it may go.

        Raises:
            UrlRefused: It may not go there (422).
        """
        if request.source is None or self._exempt.get(request.source) != origin_of(request.url):
            objection = self._policy.objection(request.url)
            if objection is not None:
                raise UrlRefused(f"{request.name} was refused: {objection}", source=request.source)
            request = replace(request, public_only=True)
        return self._transport.send(request)

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()


def _object_to_host(host: str, *, bracketed: bool) -> str | None:
    # One dot at the end only says that the name is complete.
    name = host.removesuffix(".")
    try:
        address = ip_address(name)
    except ValueError:
        return "expected an IPv6 address in the brackets" if bracketed else _object_to_name(name)
    # The URL standard takes 127.0.0.1. for an address, aiohttp for a name; and an address with a zone is of
    # one network interface. Nobody needs either.
    return (
        None
        if name == host and "%" not in name and is_public(address)
        else "expected a host of the public internet"
    )


def _object_to_name(name: str) -> str | None:
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return "expected an IPv4 address as four decimal numbers, or a name"
    if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        return "expected a host name of letters, digits and hyphens"
    # A name without a dot is one of the own network, or a top-level domain.
    if len(labels) == 1 or labels[-1] in _LOCAL or name.endswith(".home.arpa"):
        return "expected a host of the public internet"
    return None
