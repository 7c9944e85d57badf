"""The transport that talks to the network, by aiohttp."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

# At the top of the module, not at the first call: the import builds the TLS context, which reads the
# certificates from disk and would hold the loop for 20 ms.
import aiohttp

from freeloop.errors import UpstreamBodyInvalid, UpstreamUnreachable
from freeloop.outbound.aiohttp_failure import FAILURES, Progress, explain_failure
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest

# One clock decides: the deadline in `send`. aiohttp's own limits would round up to whole seconds, and its
# default of 30 s for a connection would be a second answer to the same question.
_NO_LIMITS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_CLOSE_TIMEOUT: Final = 2.0
_LARGE_CONTENT: Final = 2**20


class AiohttpTransport:
    """Carries calls over one pool of connections, which opens at the first call.

    Cookies are neither kept nor sent, and proxies or credentials in the environment are not read: what a
    call sends stands in the call.

    Args:
        limit: Connections open at once to all hosts, 1 or more; further calls wait, within their timeout.
        limit_per_host: Connections open at once to one host and port, 1 or more.
        max_redirects: Redirects that one call follows; 0 follows none and fails on the first.
        keepalive_timeout: Seconds that an idle connection is kept.
    """

    def __init__(
        self,
        *,
        limit: int = 100,
        limit_per_host: int = 50,
        max_redirects: int = 5,
        keepalive_timeout: float = 15.0,
    ) -> None:
        # aiohttp reads 0 as "no limit" in all three; nobody should get that by a miscalculation.
        if limit < 1 or limit_per_host < 1 or max_redirects < 0:
            raise ValueError("limit and limit_per_host are 1 or more, max_redirects is 0 or more")
        self._limit = limit
        self._limit_per_host = limit_per_host
        self._max_redirects = max_redirects
        self._keepalive_timeout = keepalive_timeout
        self._session: aiohttp.ClientSession | None = None
        self._under_way: set[asyncio.Timeout] = set()
        self._closed = False

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request; the contract of :class:`freeloop.outbound.Transport`."""
        progress = Progress()
        try:
            async with asyncio.timeout(request.timeout) as deadline:
                self._under_way.add(deadline)
                try:
                    response = await self._exchange(request, progress)
                finally:
                    self._under_way.discard(deadline)
        except FAILURES as error:
            if self._closed:
                raise _closed(request) from None
            raise explain_failure(error, request, progress) from None
        if len(progress.body) > request.max_body:
            raise UpstreamBodyInvalid(
                f"{request.name} answered with more than the {request.max_body} bytes that are allowed. "
                "Ask it for less, or raise the limit.",
                source=request.source,
            )
        return Response(
            status_code=response.status,
            headers=response.headers,
            content=bytes(progress.body),
            url=str(response.url),
            request=request,
        )

    async def close(self) -> None:
        """Close every connection, calls under way included; takes at most 2 s."""
        self._closed = True
        if self._session is None:
            return
        # aiohttp repeats a GET whose connection broke, and after the close that one would wait for a
        # connection for ever. So time is up for all of them, before their connections go.
        now = asyncio.get_running_loop().time()
        for deadline in self._under_way:
            if not deadline.expired():
                deadline.reschedule(now)
        # A TLS peer that never says goodbye must not hold up the shutdown.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._session.close()

    async def _exchange(self, request: OutboundRequest, progress: Progress) -> aiohttp.ClientResponse:
        content: Any = request.content
        if content is not None and len(content) > _LARGE_CONTENT:
            # aiohttp writes a file piece by piece, but bytes at one go.
            content = BytesIO(content)
        response = await self._open(request).request(
            request.method,
            request.url,
            headers=request.headers,
            data=content,
            # aiohttp fails at the n-th redirect, and has no limit at 0.
            max_redirects=self._max_redirects + 1,
        )
        progress.answered = True
        try:
            async for chunk in response.content.iter_any():
                progress.body += chunk
                if len(progress.body) > request.max_body:
                    break
        finally:
            # Returns nothing to the pool that was not read to its end: the rest would be taken for the
            # answer to the next call.
            response.close()
        return response

    def _open(self, request: OutboundRequest) -> aiohttp.ClientSession:
        if self._closed:
            raise _closed(request)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limit,
                    limit_per_host=self._limit_per_host,
                    keepalive_timeout=self._keepalive_timeout,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_NO_LIMITS,
                trust_env=False,
            )
        return self._session


def _closed(request: OutboundRequest) -> UpstreamUnreachable:
    return UpstreamUnreachable(
        f"{request.name} was given up: the outbound client is closed, since the app is shutting down",
        source=request.source,
    )
