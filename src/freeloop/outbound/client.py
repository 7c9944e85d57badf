"""What the routes hold: calls with the app's limits and readable errors."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

from freeloop.outbound.encoding import Pairs, add_params, check_message, encode_content, locate
from freeloop.outbound.response import Response
from freeloop.outbound.streaming import StreamedResponse, open_stream
from freeloop.outbound.trace import add_trace
from freeloop.outbound.transport import SHORTEST, Content, OutboundRequest, Transport
from freeloop.scope import borrow, limit_wait, spend
from freeloop.source import Source

_UNSAID: Final = Source()


class Options(TypedDict, total=False):
    """What any call may say; see :meth:`Client.request`."""

    params: Pairs | None
    headers: Mapping[str, str] | None
    content: Content | None
    json: Any
    data: Pairs | None
    timeout: float | None
    source: str | None
    idempotent: bool | None


class Client:
    """Calls external APIs; one for the whole app, which closes it.

    Args:
        transport: What carries the calls; closed with the client.
        timeout: Seconds for a whole call, where neither it nor its source says anything; over 0. There is no
            'none': every call has a bound.
        max_body: The largest body of an answer, in bytes after decompression; 1 or more.
        sources: What is said of sources, by name: of their URLs and timeouts. The rest is for the transport
            (:class:`freeloop.outbound.layers.Stacks`).
        default: What is said of all others, and of calls without one: of their timeout.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        timeout: float = 10.0,
        max_body: int = 10 * 2**20,
        sources: Mapping[str, Source] | None = None,
        default: Source = _UNSAID,
    ) -> None:
        if default.url:
            raise ValueError("default is said of several sources, and has no url")
        if max_body < 1:
            raise ValueError(f"max_body is 1 byte or more, not {max_body}")
        self.timeout = _positive(timeout)
        self.max_body = max_body
        self._transport = transport
        self._sources = dict(sources or {})
        self._default = default

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get(self, url: str, **options: Unpack[Options]) -> Coroutine[Any, Any, Response]:
        """Send a GET; arguments and errors as of :meth:`request`."""
        return self.request("GET", url, **options)

    def head(self, url: str, **options: Unpack[Options]) -> Coroutine[Any, Any, Response]:
        """Send a HEAD; arguments and errors as of :meth:`request`."""
        return self.request("HEAD", url, **options)

    def post(self, url: str, **options: Unpack[Options]) -> Coroutine[Any, Any, Response]:
        """Send a POST; arguments and errors as of :meth:`request`."""
        return self.request("POST", url, **options)

    def put(self, url: str, **options: Unpack[Options]) -> Coroutine[Any, Any, Response]:
        """Send a PUT; arguments and errors as of :meth:`request`."""
        return self.request("PUT", url, **options)

    def patch(self, url: str, **options: Unpack[Options]) -> Coroutine[Any, Any, Response]:
        """Send a PATCH; arguments and errors as of :meth:`request`."""
        return self.request("PATCH", url, **options)

    def delete(self, url: str, **options: Unpack[Options]) -> Coroutine[Any, Any, Response]:
        """Send a DELETE; arguments and errors as of :meth:`request`."""
        return self.request("DELETE", url, **options)

    async def request(self, method: str, url: str, **options: Unpack[Options]) -> Response:
        """Send a call and return its complete answer, whatever its status.

        Args:
            method: Such as ``PUT``.
            url: Absolute, http or https; of a source of which something is said also a path, such as
                ``/posts/1``, which is added to the source's URL.
            options: What else is said of the call, as follows.
            params: Added to the query of the URL: a mapping, where a list is a name that stands several
                times.
            headers: Sent as they are. Where there is no ``traceparent``, that of the scope is added.
            content: The body; None for none. An async iterator of its parts is sent part by part, and only
                once.
            json: A value to send as a JSON body, in place of ``content``; None for none (the JSON value
                null is ``content=b"null"``).
            data: The fields of a form, in place of ``content``; None for none.
            timeout: Seconds for the whole call; None means the source's, or the client's. The scope's
                deadline may shorten it.
            source: The name of the source, which decides through which layers the call goes, and by which
                errors, logs and metrics call it; None: by the URL's host.
            idempotent: Whether it may be sent again where its answer is lost; None: by its method. True for
                a POST that the upstream carries out once however often it comes, such as one with an
                ``Idempotency-Key``.

        Raises:
            UpstreamUnreachable: No connection, or it broke before the answer was complete (502).
            UpstreamTimeout: The answer was not complete in time (504).
            UpstreamBodyInvalid: The answer was too large or is not HTTP (502).
            UpstreamStatus: It redirected too often (502).
            RedirectRefused: It redirected to where the call may not go (502).
            UpstreamSuspended: The upstream fails, and is left alone for a while (503).
            UpstreamBusy: The call's turn did not come in time (503).
            ValueError: The call itself is not sendable.
        """
        request = self._build(method, url, **options)
        with borrow("upstream", request.upstream), spend("upstream"):
            return await self._transport.send(request)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        connect_timeout: float | None = None,
        idle_timeout: float | None = None,
        total_timeout: float | None = None,
        max_body: int | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[StreamedResponse]:
        """Send a call and give its answer to the block as soon as its head is there.

        The body is read in the block, as fast as the reader wants it; the upstream waits meanwhile. Leaving
        the block before its end closes the connection.

        Args:
            method: Such as ``GET``.
            url: As of :meth:`request`.
            connect_timeout: Seconds of the timeout until a connection stands; None: all of them.
            idle_timeout: Seconds that the body's next part may take; None means the client's timeout.
            total_timeout: Seconds for all of it, from the call to the body's last part; None: as long as
                parts come. The scope's deadline holds in any case.
            max_body: The largest body of the answer, in bytes after decompression; None means the client's.
            options: As of :meth:`request`, with two that mean less: the ``timeout`` is that until the head of
                the answer is there, with an upload before it; and an answer that has begun is never asked for
                again, ``idempotent`` or not.

        Raises:
            OutboundError: There was no answer, as of :meth:`request`.
            ValueError: The call itself is not sendable.
        """
        request = self._build(
            method,
            url,
            connect_timeout=None
            if connect_timeout is None
            else _positive(connect_timeout, "connect_timeout"),
            max_body=max_body,
            stream=True,
            **options,
        )
        idle = self.timeout if idle_timeout is None else _positive(idle_timeout, "idle_timeout")
        until = math.inf
        if total_timeout is not None:
            until = time.monotonic() + _positive(total_timeout, "total_timeout")
            request = request.within(min(request.timeout, total_timeout))
        response = await open_stream(self._transport, request, idle_timeout=idle, until=until)
        try:
            yield response
        finally:
            response.close()

    async def close(self) -> None:
        """Close the transport; without effect the second time."""
        await self._transport.close()

    def _build(
        self,
        method: str,
        url: str,
        *,
        params: Pairs | None = None,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        json: Any = None,  # noqa: ANN401 - JSON is any value
        data: Pairs | None = None,
        timeout: float | None = None,
        source: str | None = None,
        idempotent: bool | None = None,
        max_body: int | None = None,
        connect_timeout: float | None = None,
        stream: bool = False,
    ) -> OutboundRequest:
        said = self._default if source is None else self._sources.get(source, self._default)
        if said.url:
            url = locate(url, said.url)
        if params:
            url = add_params(url, params)
        sent = dict(headers) if headers else {}
        content = encode_content(sent, content, json, data)
        method = method.upper()
        check_message(method, sent, content)
        add_trace(sent)
        seconds = said.timeout or self.timeout if timeout is None else _positive(timeout)
        return OutboundRequest(
            method=method,
            url=url,
            headers=sent,
            content=content,
            timeout=max(limit_wait(seconds), SHORTEST),
            max_body=self.max_body if max_body is None else max_body,
            source=source,
            idempotent=idempotent,
            stream=stream,
            connect_timeout=connect_timeout,
        )


def _positive(seconds: float, name: str = "timeout") -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} is a finite number of seconds over 0, not {seconds}")
    return seconds
