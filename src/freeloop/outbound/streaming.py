"""Answers that are read while they come."""

from __future__ import annotations

import codecs
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from io import IncrementalNewlineDecoder
from typing import Any

from freeloop.outbound.body import Body
from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.scope import borrow, limit_wait, spend


class StreamedResponse:
    """The head of an answer, and its body as it comes; read by one task at a time.

    The body is read once. Reading it to its end leaves the connection to the next call; leaving earlier
    closes it.

    Args:
        response: The answer, with its body.
        idle_timeout: Seconds that any part of the body may take to come.
        until: When all of it must have come, in seconds of :func:`time.monotonic`; infinity, the default:
            there is no such time.
    """

    __slots__ = ("_body", "_idle_timeout", "_response", "_until")

    def __init__(self, response: Response, *, idle_timeout: float, until: float = math.inf) -> None:
        # A transport that knows no streams has given the whole answer.
        self._body: Body | None = response.body
        self._response = response
        self._idle_timeout = idle_timeout
        self._until = until

    @property
    def status_code(self) -> int:
        """The HTTP status."""
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """As they came; a mapping that does not mind the case of names."""
        return self._response.headers

    @property
    def url(self) -> str:
        """Where the answer came from, after redirects; with its query."""
        return self._response.url

    @property
    def request(self) -> OutboundRequest:
        """The call that it answers."""
        return self._response.request

    @property
    def elapsed(self) -> timedelta:
        """From handing the request to the transport to the head of the answer."""
        return self._response.elapsed

    @property
    def is_success(self) -> bool:
        """Whether the status is from 200 to 299."""
        return self._response.is_success

    @property
    def content(self) -> bytes:
        """The body, after :meth:`aread`.

        Raises:
            RuntimeError: It was not read.
        """
        return self._whole().content

    @property
    def text(self) -> str:
        """The body as text, after :meth:`aread`; as of :attr:`Response.text`."""
        return self._whole().text

    def json(self) -> Any:  # noqa: ANN401 - JSON is any value
        """Decode the body as JSON, after :meth:`aread`; as of :meth:`Response.json`."""
        return self._whole().json()

    def raise_for_status(self) -> None:
        """Raise where the status is an error.

        Raises:
            UpstreamStatus: The status is 400 or more (502).
        """
        self._response.raise_for_status()

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Give the body, decompressed, in parts as they come.

        Raises:
            UpstreamTimeout: A part did not come in time, or the scope's time was up (504).
            UpstreamUnreachable: The connection broke (502).
            UpstreamBodyInvalid: The body is too large, or not what its headers say (502).
        """
        if self._body is None:
            if self._response.content:
                yield self._response.content
            return
        while part := await self._read(self._body):
            yield part

    async def aiter_text(self) -> AsyncIterator[str]:
        """Give the body as text, by the charset of ``Content-Type`` or as UTF-8; errors of aiter_bytes."""
        decoder = codecs.getincrementaldecoder(self._response.charset)("replace")
        async for part in self.aiter_bytes():
            if text := decoder.decode(part):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    async def aiter_lines(self) -> AsyncIterator[str]:
        r"""Give the body line by line, without the line ends: ``\n``, ``\r\n`` or ``\r``; errors as above.

        Not those that ``str.splitlines`` knows beside them, which may stand within a line of JSON.
        """
        newlines = IncrementalNewlineDecoder(None, translate=True)
        begun: list[str] = []  # a long line that comes in many parts is joined once
        async for text in self.aiter_text():
            first, *more = newlines.decode(text).split("\n")
            begun.append(first)
            if more:
                yield "".join(begun)
                for line in more[:-1]:
                    yield line
                begun = [more[-1]]
        last = "".join(begun) + newlines.decode("", final=True)
        if last:
            yield last.removesuffix("\n")

    async def aread(self) -> bytes:
        """Read what is left of the body and return it; ``content``, ``text`` and ``json()`` hold it then."""
        if self._body is not None:
            content = b"".join([part async for part in self.aiter_bytes()])
            self._response, self._body = replace(self._response, content=content, body=None), None
        return self._response.content

    def close(self) -> None:
        """Give up what has not been read; leaving the block of ``client.stream`` does so."""
        self._response.close()

    async def _read(self, body: Body) -> bytes:
        with spend("upstream"):
            seconds = min(limit_wait(self._idle_timeout), self._until - time.monotonic())
            return await body.read(seconds)

    def _whole(self) -> Response:
        if self._body is not None:
            raise RuntimeError("expected the body to be read: write 'await response.aread()' before")
        return self._response


async def open_stream(
    transport: Transport, request: OutboundRequest, *, idle_timeout: float, until: float = math.inf
) -> StreamedResponse:
    """Send a request and return its answer once the head of it is there; the caller closes it.

    Args:
        transport: What carries the call.
        request: With ``stream``.
        idle_timeout: Seconds that any part of the body may take to come, over 0.
        until: As of :class:`StreamedResponse`.
    """
    lease = borrow("upstream", request.upstream)
    try:
        with spend("upstream"):
            response = await transport.send(request)
    except BaseException:
        lease.release()
        raise
    if response.body is None:
        lease.release()
    else:
        response.body.when_over(lambda _: lease.release())
    return StreamedResponse(response, idle_timeout=idle_timeout, until=until)
