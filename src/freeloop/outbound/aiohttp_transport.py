"""The transport that talks to the network, by aiohttp."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any, Final

# At the top of the module, not at the first call: the import builds the TLS context, which reads the
# certificates from disk and would hold the loop for 20 ms.
import aiohttp
from yarl import URL

from freeloop.errors import UpstreamUnreachable
from freeloop.outbound.aiohttp_connection import Connector, StaleConnectionError
from freeloop.outbound.aiohttp_failure import FAILURES, Progress, explain_failure
from freeloop.outbound.aiohttp_streams import Download, Upload
from freeloop.outbound.body import Body, too_large
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest
from freeloop.outbound.urls import parse_url

# One clock decides: the deadline in `send`. aiohttp's own limits would round up to whole seconds, and its
# default of 30 s for a connection would be a second answer to the same question.
_NO_LIMITS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_CLOSE_TIMEOUT: Final = 2.0
_LARGE_CONTENT: Final = 2**20
_STREAM_BUFFER: Final = 2**16  # bytes, of which aiohttp holds at most twice as many unread


class AiohttpTransport:
    """Carries calls over one pool of connections, which opens at the first call.

    Cookies are neither kept nor sent, and proxies or credentials in the environment are not read: what a
    call sends stands in the call. A redirect is an answer like any other.

    An idempotent call on a connection that the server had given up meanwhile goes again at once, on another
    one; nothing else is repeated. An answer that nobody asked for ends its connection. Calls to the public
    internet only (``public_only``) have a pool to themselves: a connection that another call made was not
    checked.

    Args:
        limit: Connections open at once to all hosts, 1 or more, of either pool; further calls wait, within
            their timeout.
        limit_per_host: Connections open at once to one host and port, 1 or more; 100 by default, as many as
            :class:`freeloop.source.Source` lets through.
        keepalive_timeout: Seconds that an idle connection is kept.
        tls: Whom to trust over https; None: the system's authorities. Built before the loop runs, since it
            reads files.
    """

    def __init__(
        self,
        *,
        limit: int = 1000,
        limit_per_host: int = 100,
        keepalive_timeout: float = 15.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        # aiohttp reads 0 as "no limit" in both; nobody should get that by a miscalculation.
        if limit < 1 or limit_per_host < 1:
            raise ValueError("limit and limit_per_host are 1 or more")
        self._limit = limit
        self._limit_per_host = limit_per_host
        self._keepalive_timeout = keepalive_timeout
        self._tls = tls
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether public addresses only
        self._under_way: set[asyncio.Timeout] = set()
        self._closed = False

    async def send(self, request: OutboundRequest) -> Response:
        """Send the request; the contract of :class:`freeloop.outbound.Transport`."""
        try:
            url = parse_url(request.url)
        except ValueError as error:
            raise ValueError(f"{request.name} cannot be called: {error}") from None
        progress = Progress()
        upload = Upload(request) if request.in_parts else None
        content = b""
        body = None
        started = time.monotonic()
        try:
            async with asyncio.timeout(request.timeout) as deadline:
                self._under_way.add(deadline)
                try:
                    response = await self._begin(request, url, upload)
                    progress.answered = True
                    if not request.stream:
                        content = await _read_whole(response, request, progress)
                finally:
                    self._under_way.discard(deadline)
        except FAILURES as error:
            raise self._explain(request, progress, upload, error) from None
        if request.stream:
            explain = partial(self._explain, request, progress, upload)
            body = Body(Download(response, request, progress, explain), request)
        elif progress.received > request.max_body:
            raise too_large(request)
        return Response(
            status_code=response.status,
            headers=response.headers,
            content=content,
            url=str(response.url),
            request=request,
            seconds=time.monotonic() - started,
            body=body,
        )

    async def close(self) -> None:
        """Close every connection, calls under way included; takes at most 2 s."""
        self._closed = True
        # aiohttp tells a call that waits for a connection by cancelling it, as if its caller had. So time
        # is up for all of them, before their connections go.
        now = asyncio.get_running_loop().time()
        for deadline in self._under_way:
            if not deadline.expired():
                deadline.reschedule(now)
        # A TLS peer that never says goodbye must not hold up the shutdown.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                for session in self._sessions.values():
                    await session.close()

    async def _begin(
        self, request: OutboundRequest, url: URL, upload: Upload | None
    ) -> aiohttp.ClientResponse:
        limits = _NO_LIMITS
        if request.connect_timeout is not None:
            limits = aiohttp.ClientTimeout(total=None, connect=request.connect_timeout)
        while True:
            content: Any = upload or request.content
            if isinstance(content, bytes) and len(content) > _LARGE_CONTENT:
                # aiohttp writes a file piece by piece, but bytes at one go.
                content = BytesIO(content)
            try:
                return await self._open(request).request(
                    request.method,
                    url,
                    headers=request.headers,
                    data=content,
                    allow_redirects=False,
                    timeout=limits,
                    read_bufsize=_STREAM_BUFFER if request.stream else None,
                )
            except StaleConnectionError:
                # Each one is out of the pool for good, so this ends with a fresh one, or with the time.
                if not request.repeatable:
                    raise

    def _open(self, request: OutboundRequest) -> aiohttp.ClientSession:
        if self._closed:
            raise _closed(request)
        session = self._sessions.get(request.public_only)
        if session is None:
            session = self._sessions[request.public_only] = aiohttp.ClientSession(
                connector=Connector(
                    public_only=request.public_only,
                    limit=self._limit,
                    limit_per_host=self._limit_per_host,
                    keepalive_timeout=self._keepalive_timeout,
                    ssl=self._tls or True,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_NO_LIMITS,
                trust_env=False,
            )
            # aiohttp repeats a call also where a fresh connection broke: a load that no retry budget knows
            # of. There is no public switch.
            session._retry_connection = False
        return session

    def _explain(
        self, request: OutboundRequest, progress: Progress, upload: Upload | None, error: Exception
    ) -> Exception:
        if upload is not None and upload.error is not None:
            return upload.error
        return _closed(request) if self._closed else explain_failure(error, request, progress)


async def _read_whole(
    response: aiohttp.ClientResponse, request: OutboundRequest, progress: Progress
) -> bytes:
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            progress.received += len(chunk)
            if progress.received > request.max_body:
                break
    finally:
        # Returns nothing to the pool that was not read to its end: the rest would be taken for the answer to
        # the next call.
        response.close()
    return bytes(body)


def _closed(request: OutboundRequest) -> UpstreamUnreachable:
    return UpstreamUnreachable(
        f"{request.name} was given up: the outbound client is closed, since the app is shutting down",
        source=request.source,
        lasting=True,
    )
