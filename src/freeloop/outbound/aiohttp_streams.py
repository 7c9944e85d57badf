"""Bodies that aiohttp carries part by part: the answer's, and the request's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import cast

import aiohttp

from freeloop.errors import UpstreamTimeout
from freeloop.outbound.aiohttp_failure import FAILURES, Progress
from freeloop.outbound.transport import OutboundRequest


class Download:
    """The parts of an answer's body; a :class:`freeloop.outbound.body.Parts`.

    aiohttp stops reading from the socket while more than twice its buffer is unread, and TCP passes that on.

    Args:
        response: Its head has come.
        progress: Counts what comes.
        explain: Makes an error of ours of one of aiohttp's.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        request: OutboundRequest,
        progress: Progress,
        explain: Callable[[Exception], Exception],
    ) -> None:
        self._response = response
        self._request = request
        self._progress = progress
        self._explain = explain

    async def read(self, seconds: float) -> bytes:
        """Return what came, or wait for it at most so long; nothing at the end."""
        content = self._response.content
        try:
            part = content.read_nowait()
            if not part and not content.at_eof():
                part = await self._wait(content, seconds)
        except FAILURES as error:
            raise self._explain(error) from None
        self._progress.received += len(part)
        return part

    def close(self) -> None:
        """Give the connection back, which aiohttp has done itself after the last byte, or close it."""
        self._response.close()

    async def _wait(self, content: aiohttp.StreamReader, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                return await content.readany()
        except TimeoutError:
            raise UpstreamTimeout(
                f"{self._request.name} sent nothing more for {seconds:.3g} s, after "
                f"{self._progress.received} bytes of the body",
                source=self._request.source,
                seconds=seconds,
            ) from None


class Upload:
    """A request's body in parts, which aiohttp takes as fast as the upstream does.

    Args:
        request: The call, with the app's own iterator as its content.

    Attributes:
        error: What the app's own iterator raised, which aiohttp would wrap.
    """

    def __init__(self, request: OutboundRequest) -> None:
        self.error: Exception | None = None
        self._parts = cast("AsyncIterable[bytes]", request.content)
        self._request = request
        length = {name.lower(): value for name, value in request.headers.items()}.get("content-length")
        self._length = None if length is None else int(length)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = 0
        try:
            async for part in self._parts:
                if not isinstance(part, bytes | bytearray | memoryview):
                    raise TypeError(  # noqa: TRY301 - it is the app's own error like any other
                        f"{self._request.name}: expected parts of the body as bytes, got {type(part)}"
                    )
                sent += len(part)
                self._compare(sent, complete=False)
                yield part
            self._compare(sent, complete=True)
        except Exception as error:
            self.error = error
            raise

    def _compare(self, sent: int, *, complete: bool) -> None:
        """Hold a body against its ``Content-Length``: aiohttp cuts what is too long, and too short hangs."""
        length = self._length
        if length is not None and (sent > length or (complete and sent < length)):
            raise ValueError(
                f"{self._request.name}: expected a body of {length} bytes, as its Content-Length says, got "
                f"{sent}{'' if complete else ' or more'}. Leave the header out, or mend it."
            )
