"""The SDKs of other people on our client: a transport for httpx2, which those of OpenAI and Anthropic use.

What such an SDK sends has the app's retries, limits, deadlines and connections, and is seen like any other
call. Not imported by the package: httpx2 is optional, ``pip install freeloop[httpx2]``.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, cast

try:
    import httpx2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "HttpxTransport needs httpx2, which is not installed: pip install 'freeloop[httpx2]'", name=error.name
    ) from None

from freeloop.errors import (
    OutboundError,
    RedirectRefused,
    UpstreamBodyInvalid,
    UpstreamBusy,
    UpstreamStatus,
    UpstreamSuspended,
    UpstreamTimeout,
    UpstreamUnreachable,
    UrlRefused,
)
from freeloop.outbound.client import Client
from freeloop.outbound.streaming import StreamedResponse
from freeloop.outbound.transport import Content

# Of one connection, which is not httpx2's here.
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "transfer-encoding", "upgrade"})
# What the client has unpacked already. Any other is left as it came, and httpx2's to unpack.
_UNPACKED: Final = frozenset({"gzip", "deflate", "br", "zstd"})
_ERRORS: Final[dict[type[OutboundError], type[httpx2.RequestError]]] = {
    UpstreamTimeout: httpx2.ReadTimeout,
    UpstreamBusy: httpx2.PoolTimeout,
    UpstreamSuspended: httpx2.ConnectError,
    UpstreamBodyInvalid: httpx2.RemoteProtocolError,
    UpstreamStatus: httpx2.TooManyRedirects,
    RedirectRefused: httpx2.RemoteProtocolError,
    UrlRefused: httpx2.UnsupportedProtocol,
}


class HttpxTransport(httpx2.AsyncBaseTransport):
    """Carries the calls of an ``httpx2.AsyncClient`` over the app's outbound client.

    ::

        http = httpx2.AsyncClient(transport=HttpxTransport(kit.outbound, source="openai", idempotent=True))
        openai = AsyncOpenAI(http_client=http, max_retries=0)

    Every answer is streamed, since httpx2 does not tell whether its caller wants it whole; so the cache and
    the joining of identical calls have no part in them. Errors are httpx2's, with ours as their cause.

    The longest of httpx2's four timeouts is the time until the head of an answer, with all retries; its
    ``connect`` that of a connection, and its ``read`` that of each part of the body. None, which is no limit
    to httpx2, means the client's. The scope's deadline holds too.

    Args:
        client: Stays the app's: closing httpx2's client leaves it open.
        source: The name of the source whose limits hold; None: those of each host.
        idempotent: Whether calls may be sent again, whatever their method; None: by the method. A model that
            is asked twice costs twice, and does no other harm: what these SDKs repeat themselves.
        max_body: The largest body of an answer, in bytes after decompression; None: the client's.
        total_timeout: Seconds for a call and all of its answer, which httpx2 does not know; None: none.
    """

    def __init__(
        self,
        client: Client,
        *,
        source: str | None = None,
        idempotent: bool | None = None,
        max_body: int | None = None,
        total_timeout: float | None = None,
    ) -> None:
        self._client = client
        self._source = source
        self._idempotent = idempotent
        self._max_body = max_body
        self._total_timeout = total_timeout

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its answer once the head of it is there.

        Raises:
            httpx2.RequestError: There was no answer; the cause is the :class:`freeloop.errors.OutboundError`.
        """
        limits: Mapping[str, float | None] = request.extensions.get("timeout", {})
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        exchange = self._client.stream(
            request.method,
            str(request.url),
            headers=headers,
            content=_content_of(request),
            timeout=max((seconds for seconds in map(_bound, limits.values()) if seconds), default=None),
            connect_timeout=_bound(limits.get("connect")),
            idle_timeout=_bound(limits.get("read")),
            total_timeout=self._total_timeout,
            max_body=self._max_body,
            source=self._source,
            idempotent=self._idempotent,
        )
        try:
            response = await exchange.__aenter__()
        except OutboundError as error:
            raise _translate(error, request) from error
        return httpx2.Response(
            response.status_code, headers=_headers_of(response), stream=_Stream(exchange, response, request)
        )


class _Stream(httpx2.AsyncByteStream):
    """The body of an answer, as httpx2 reads it."""

    def __init__(
        self,
        exchange: AbstractAsyncContextManager[StreamedResponse],
        response: StreamedResponse,
        request: httpx2.Request,
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.aiter_bytes():
                yield part
        except OutboundError as error:
            raise _translate(error, self._request) from error

    async def aclose(self) -> None:
        await self._exchange.__aexit__(None, None, None)


def _content_of(request: httpx2.Request) -> Content | None:
    try:
        return request.content or None
    except httpx2.RequestNotRead:
        return cast("AsyncIterable[bytes]", request.stream)


def _headers_of(response: StreamedResponse) -> list[tuple[str, str]]:
    headers = list(response.headers.items())  # a multidict's: each one that came
    if response.headers.get("Content-Encoding", "").strip().lower() in _UNPACKED:
        return [
            header for header in headers if header[0].lower() not in {"content-encoding", "content-length"}
        ]
    return headers


def _bound(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 < seconds < math.inf else None


def _translate(error: OutboundError, request: httpx2.Request) -> httpx2.RequestError:
    if isinstance(error, UpstreamUnreachable):
        unsent = httpx2.ConnectTimeout if error.late else httpx2.ConnectError
        kind: type[httpx2.RequestError] = httpx2.ReadError if error.sent else unsent
    else:
        kind = _ERRORS.get(type(error), httpx2.NetworkError)
    return kind(error.detail, request=request)
