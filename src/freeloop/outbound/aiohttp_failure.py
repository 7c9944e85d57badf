"""What aiohttp's failures mean, in our words; its own texts show URLs with their secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from freeloop.errors import (
    OutboundError,
    UpstreamBodyInvalid,
    UpstreamTimeout,
    UpstreamUnreachable,
    UrlRefused,
)
from freeloop.outbound.aiohttp_connection import AddressNotPublicError
from freeloop.outbound.transport import OutboundRequest

# TimeoutError is an OSError.
FAILURES: Final = (OSError, aiohttp.ClientError)


@dataclass(slots=True)
class Progress:
    """How far a call has come: has the answer begun, and how many bytes of its body are there."""

    answered: bool = False
    received: int = 0


def explain_failure(error: Exception, request: OutboundRequest, progress: Progress) -> OutboundError:
    """Return the error of ours to raise for one of ``FAILURES``."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamUnreachable(
            f"{request.name} could not be reached: no connection within {request.connect_timeout:g} s. Check "
            "the address, and that the service runs.",
            source=request.source,
            sent=False,
            late=True,
        )
    name, source = request.name, request.source
    so_far = f"after {progress.received} bytes of the body" if progress.answered else "before it answered"
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(
            f"{name} did not answer completely within {request.timeout:g} s: time was up {so_far}",
            source=source,
            seconds=request.timeout,
        )
    unusable = _explain_answer(error)
    if unusable is not None:
        return UpstreamBodyInvalid(f"{name} {unusable}", source=source)
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, AddressNotPublicError):
            return UrlRefused(
                f"{name} was refused: expected a host of the public internet, and this one's address is not",
                source=source,
            )
        reason = error.os_error.strerror or type(error.os_error).__name__
        unreachable = f"could not be reached: {reason}. Check the address, and that the service runs."
    else:
        unreachable = f"broke the connection {so_far} ({type(error).__name__})"
    sent = not isinstance(error, aiohttp.ClientConnectorError)
    # A certificate that is not trusted will not be a moment later.
    lasting = isinstance(error, aiohttp.ClientConnectorCertificateError)
    return UpstreamUnreachable(f"{name} {unreachable}", source=source, sent=sent, lasting=lasting)


def _explain_answer(error: Exception) -> str | None:
    """Say what is wrong with an answer that came, or None where none came."""
    match error:
        case aiohttp.ClientResponseError():
            # Only the first line: the next ones quote what came.
            return f"answered with something that is not HTTP: {error.message.strip().partition(':')[0]}"
        case aiohttp.ClientPayloadError(__cause__=ContentEncodingError()):
            return "answered with a body that is not compressed the way its headers say"
        case _:
            return None
