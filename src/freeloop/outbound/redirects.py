"""Follow redirects, as the Fetch standard says (https://fetch.spec.whatwg.org/#http-redirect-fetch).

Hop by hop and in our own hands, so that every hop passes the layers below: the URL policy, the cache, the
breaker of the host that it leads to.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from yarl import URL

from freeloop.errors import (
    OutboundError,
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamTimeout,
    UrlRefused,
)
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.outbound.urls import parse_url, resolve_url

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_OF_BODIES: Final = frozenset(
    {
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-type",
        "transfer-encoding",
    }
)
# What another origin may see. Not a list of what it may not: credentials go by any name (X-Api-Key).
_HARMLESS: Final = _OF_BODIES | {
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "pragma",
    "range",
    "traceparent",
    "tracestate",
    "user-agent",
}


@dataclass(frozen=True, slots=True)
class RedirectPolicy:
    """Where the next hop goes, if there is one. Pure.

    Args:
        limit: How many redirects a call follows; 0 follows none and fails on the first.
        allow_downgrade: Whether one may lead from https to http, where anybody can read and change it.
    """

    limit: int = 5
    allow_downgrade: bool = False

    def __post_init__(self) -> None:
        """Refuse a limit that is none."""
        if self.limit < 0:
            raise ValueError(f"the limit of redirects is 0 or more, not {self.limit}")

    def next_hop(self, request: OutboundRequest, response: Response) -> OutboundRequest | None:
        """Return the request that a response redirects to, or None where it is an answer.

        Raises:
            UpstreamBodyInvalid: It redirects to something that is not an http or https URL (502).
            RedirectRefused: It redirects from https to http, or asks again for a body that was sent in parts
                (502).
        """
        if response.status_code not in _REDIRECTS:
            return None
        location = response.headers.get("Location")
        if location is None:
            return None
        here = parse_url(request.url)
        try:
            there = resolve_url(request.url, location)
        except ValueError:
            raise UpstreamBodyInvalid(
                f"{request.name} redirected to an address that is not an http or https URL",
                source=request.source,
            ) from None
        if here.scheme == "https" and there.scheme == "http" and not self.allow_downgrade:
            raise RedirectRefused(
                f"{request.name} redirected from https to http. Have it redirect to https, or allow the "
                "downgrade.",
                source=request.source,
            )
        hop = _change_method(request, response.status_code)
        if hop.in_parts:
            raise RedirectRefused(
                f"{request.name} redirected with status {response.status_code}, which asks for its body "
                "again, and that was sent in parts. Call the place that it redirects to, or give the body as "
                "bytes.",
                source=request.source,
            )
        if _origin(here) == _origin(there):
            # Credentials in the URL hold for the origin; a location does not repeat them.
            there = there.with_user(here.user).with_password(here.password)
            return replace(hop, url=str(there))
        return replace(
            hop,
            url=str(there.with_user(None)),
            headers={name: value for name, value in hop.headers.items() if name.lower() in _HARMLESS},
            # Nor does the trust in a source, nor its account of failures, hold for another origin.
            source=None,
        )


class Redirects:
    """The layer that follows redirects; the outermost but for the deadline.

    Args:
        transport: What carries each hop.
        policy: Which ones to follow; the default policy, where left out.
        elsewhere: What carries the hops once one has led to another origin: who called has not named that
            one, so the transport may be guarded; the same transport, where left out.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        policy: RedirectPolicy | None = None,
        elsewhere: Transport | None = None,
    ) -> None:
        self._transport = transport
        self._policy = policy or RedirectPolicy()
        self._elsewhere = elsewhere or transport

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request, and those that it leads to, within its timeout.

        Raises:
            UpstreamStatus: It redirected too often, or in a circle (502).
            RedirectRefused: It redirected to where the call may not go (502).
            UpstreamBodyInvalid: It redirected to something that is not a URL (502).
        """
        started = asyncio.get_running_loop().time()
        response = await self._transport.send(request)
        # Nearly every answer is none of these.
        if response.status_code in _REDIRECTS:
            response = await self._follow(request, response, started + request.timeout)
        return response

    async def close(self) -> None:
        """Close the transport."""
        await self._transport.close()

    async def _follow(self, request: OutboundRequest, response: Response, deadline: float) -> Response:
        hop, count, carrier = request, 0, self._transport
        seen = {(request.method, request.url)}
        while (following := self._next_hop(hop, response)) is not None:
            hop, place = following, (following.method, following.url)
            if _origin(parse_url(hop.url)) != _origin(parse_url(request.url)):
                carrier = self._elsewhere  # for good: also a way back is one that somebody else has named
            # Without cookies and with the same headers, the same place would answer the same.
            if count == self._policy.limit or place in seen:
                how = "in a circle" if place in seen else f"more than {count} times"
                raise UpstreamStatus(
                    f"{request.name} redirected {how}; the last status was {response.status_code}",
                    upstream_status=response.status_code,
                    source=request.source,
                )
            seen.add(place)
            count += 1
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise UpstreamTimeout(
                    f"{request.name} did not answer within {request.timeout:g} s: it still redirected",
                    source=request.source,
                )
            response = await self._send_hop(carrier, replace(hop, timeout=left), request)
        # What answers is the call, whatever it took; where from is in the response's URL.
        return replace(response, request=request)

    def _next_hop(self, hop: OutboundRequest, response: Response) -> OutboundRequest | None:
        """Ask the policy; where the response is no answer, nobody reads its body."""
        try:
            following = self._policy.next_hop(hop, response)
        except OutboundError:
            response.close()
            raise
        if following is not None:
            response.close()
        return following

    async def _send_hop(self, carrier: Transport, hop: OutboundRequest, request: OutboundRequest) -> Response:
        try:
            return await carrier.send(hop)
        except UrlRefused as error:
            # The URL that the caller gave was fine.
            raise RedirectRefused(
                f"{request.name} redirected to where it may not: {error.detail}", source=request.source
            ) from None
        except OutboundError as error:
            error.source = request.source
            raise


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    # Not yarl's own, which tells the default port from the same port written out.
    return url.scheme, url.raw_host, url.port


def _change_method(request: OutboundRequest, status: int) -> OutboundRequest:
    lost = {301: {"POST"}, 302: {"POST"}, 303: {request.method} - {"GET", "HEAD"}}.get(status, set())
    if request.method not in lost:
        return request
    kept = {name: value for name, value in request.headers.items() if name.lower() not in _OF_BODIES}
    return replace(request, method="GET", content=None, headers=kept)
