"""What the routes hold: calls with the app's limits and readable errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import orjson

from freeloop.outbound.response import Response
from freeloop.outbound.transport import OutboundRequest, Transport
from freeloop.scope import borrow, limit_wait, spend

_SHORTEST: Final = 0.001  # a transport takes 0 for "no limit"


class Client:
    """Calls external APIs; one for the whole app, which closes it.

    Args:
        transport: What carries the calls; closed with the client.
        timeout: Seconds for a whole call, where it gives none itself; over 0. There is no 'none': every
            call has a bound.
        max_body: The largest body of an answer, in bytes after decompression; 1 or more.
    """

    def __init__(self, transport: Transport, *, timeout: float = 10.0, max_body: int = 10 * 2**20) -> None:
        if max_body < 1:
            raise ValueError(f"max_body is 1 byte or more, not {max_body}")
        self.timeout = _positive(timeout)
        self.max_body = max_body
        self._transport = transport

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - travels with the call through the transports
        source: str | None = None,
    ) -> Response:
        """Send a GET; arguments and errors as of :meth:`request`."""
        return await self.request("GET", url, headers=headers, timeout=timeout, source=source)

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        json: Any = None,  # noqa: ANN401 - JSON is any value
        timeout: float | None = None,  # noqa: ASYNC109 - travels with the call through the transports
        source: str | None = None,
    ) -> Response:
        """Send a POST; arguments and errors as of :meth:`request`."""
        return await self.request(
            "POST", url, headers=headers, content=content, json=json, timeout=timeout, source=source
        )

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        json: Any = None,  # noqa: ANN401 - JSON is any value
        timeout: float | None = None,  # noqa: ASYNC109 - travels with the call through the transports
        source: str | None = None,
    ) -> Response:
        """Send a call and return its complete answer, whatever its status.

        Args:
            method: Such as ``PUT``.
            url: Absolute, http or https.
            headers: Sent as they are.
            content: The body; None for none.
            json: A value to send as a JSON body, in place of ``content``; None for none (the JSON value
                null is ``content=b"null"``).
            timeout: Seconds for the whole call; None means the client's. The scope's deadline may shorten
                it.
            source: The name of the configured source, for errors and logs.

        Raises:
            UpstreamUnreachable: No connection, or it broke before the answer was complete (502).
            UpstreamTimeout: The answer was not complete in time (504).
            UpstreamBodyInvalid: The answer was too large or is not HTTP (502).
            UpstreamStatus: It redirected too often (502).
            ValueError: The call itself is not sendable.
        """
        sent = dict(headers or {})
        if json is not None:
            if content is not None:
                raise ValueError("a call has either content or json, not both")
            content = orjson.dumps(json)
            if not any(name.lower() == "content-type" for name in sent):
                sent["Content-Type"] = "application/json"
        seconds = limit_wait(self.timeout if timeout is None else _positive(timeout))
        with borrow("upstream", source or url), spend("upstream"):
            return await self._transport.send(
                OutboundRequest(
                    method=method.upper(),
                    url=url,
                    headers=sent,
                    content=content,
                    timeout=max(seconds, _SHORTEST),
                    max_body=self.max_body,
                    source=source,
                )
            )

    async def close(self) -> None:
        """Close the transport; without effect the second time."""
        await self._transport.close()


def _positive(seconds: float) -> float:
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout is a finite number of seconds over 0, not {seconds}")
    return seconds
