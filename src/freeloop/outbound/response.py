"""The complete answer to an outbound call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.message import Message
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from freeloop.errors import UpstreamBodyInvalid, UpstreamStatus
from freeloop.outbound.json_text import check_json, decode_json
from freeloop.outbound.transport import OutboundRequest

if TYPE_CHECKING:
    from freeloop.outbound.body import Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What an upstream answered; the body is complete, decompressed and within the limit.

    Where the request asked for a stream, it is still to come.

    Attributes:
        status_code: The HTTP status.
        headers: As they came; a mapping that does not mind the case of names.
        content: The body; empty where it is still to come.
        url: Where the answer came from, after redirects; with its query.
        request: The call that it answers.
        seconds: From handing the request to the transport to the last byte, or to the head where the body is
            still to come; 0.0 where not known.
        body: What is still to come; None: nothing.
    """

    status_code: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    url: str = field(repr=False)
    request: OutboundRequest
    seconds: float = 0.0
    body: Body | None = field(default=None, repr=False, compare=False)

    def close(self) -> None:
        """Give up what is still to come of the body."""
        if self.body is not None:
            self.body.close()

    @property
    def elapsed(self) -> timedelta:
        """:attr:`seconds`, as httpx has them."""
        return timedelta(seconds=self.seconds)

    @property
    def is_success(self) -> bool:
        """Whether the status is from 200 to 299."""
        return 200 <= self.status_code < 300

    @property
    def charset(self) -> str:
        """The charset that ``Content-Type`` names, or UTF-8 where it names none that there is."""
        message = Message()
        message["Content-Type"] = self.headers.get("Content-Type", "text/plain")
        charset = message.get_content_charset("utf-8")
        try:
            b"?".decode(charset, "replace")
        except (LookupError, ValueError):  # unknown, not of text, or without a way to replace
            return "utf-8"
        return charset

    @property
    def text(self) -> str:
        """The body as text, by the charset of ``Content-Type`` or as UTF-8; U+FFFD where it does not fit."""
        return self.content.decode(self.charset, "replace")

    def json(self) -> Any:  # noqa: ANN401 - JSON is any value
        """Decode the body as JSON; integers of any size stay exact.

        Raises:
            UpstreamBodyInvalid: The body is not JSON (502).
        """
        try:
            return decode_json(self.content)
        except ValueError as error:
            raise self._not_json(error) from None

    async def json_bytes(self) -> bytes:
        """Return the body itself, once it is known to be JSON: numbers and order of keys untouched.

        A large body is checked in a thread; the loop goes on.

        Raises:
            UpstreamBodyInvalid: The body is not JSON (502).
        """
        try:
            return await check_json(self.content)
        except ValueError as error:
            raise self._not_json(error) from None

    def raise_for_status(self) -> None:
        """Raise where the status is an error.

        Raises:
            UpstreamStatus: The status is 400 or more (502).
        """
        if self.status_code < 400:
            return
        try:
            phrase = f" {HTTPStatus(self.status_code).phrase}"
        except ValueError:
            phrase = ""
        raise UpstreamStatus(
            f"{self.request.name} answered with status {self.status_code}{phrase}",
            upstream_status=self.status_code,
            source=self.request.source,
        )

    def _not_json(self, error: ValueError) -> UpstreamBodyInvalid:
        kind = self.headers.get("Content-Type", "no content type")
        return UpstreamBodyInvalid(
            f"{self.request.name} was expected to answer with JSON; {len(self.content)} bytes came "
            f"({kind}): {error}",
            source=self.request.source,
        )
