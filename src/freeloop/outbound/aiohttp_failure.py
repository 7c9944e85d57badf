"""What aiohttp's failures mean, in our words; its own texts show URLs with their secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from freeloop.errors import (
    OutboundError,
    UpstreamBodyInvalid,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from freeloop.outbound.transport import OutboundRequest

# TimeoutError is an OSError.
FAILURES: Final = (OSError, aiohttp.ClientError)


@dataclass(slots=True)
class Progress:
    """How far a call has come: has the answer begun, and what of its body is there."""

    answered: bool = False
    body: bytearray = field(default_factory=bytearray)


def explain_failure(
    error: OSError | aiohttp.ClientError, request: OutboundRequest, progress: Progress
) -> OutboundError | ValueError:
    """Return the error of ours to raise; a ValueError where the request itself was not sendable."""
    name, source = request.name, request.source
    so_far = f"after {len(progress.body)} bytes of the body" if progress.answered else "before it answered"
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(
            f"{name} did not answer completely within {request.timeout:g} s: time was up {so_far}",
            source=source,
        )
    if isinstance(error, aiohttp.TooManyRedirects):
        last = error.history[-1].status
        return UpstreamStatus(
            f"{name} redirected more than {len(error.history) - 1} times; the last status was {last}",
            upstream_status=last,
            source=source,
        )
    # Before InvalidURL, which the redirects' error is one of.
    unusable = _explain_answer(error)
    if unusable is not None:
        return UpstreamBodyInvalid(f"{name} {unusable}", source=source)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return ValueError(f"{name} cannot be called: expected an absolute http or https URL")
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error.strerror or type(error.os_error).__name__
        unreachable = f"could not be reached: {reason}. Check the address, and that the service runs."
    else:
        unreachable = f"broke the connection {so_far} ({type(error).__name__})"
    return UpstreamUnreachable(f"{name} {unreachable}", source=source)


def _explain_answer(error: Exception) -> str | None:
    """Say what is wrong with an answer that came, or None where none came."""
    match error:
        case aiohttp.RedirectClientError():
            return "redirected to an address that is not an http or https URL"
        case aiohttp.ClientResponseError():
            # Only the first line: the next ones quote what came.
            return f"answered with something that is not HTTP: {error.message.strip().partition(':')[0]}"
        case aiohttp.ClientPayloadError(__cause__=ContentEncodingError()):
            return "answered with a body that is not compressed the way its headers say"
        case _:
            return None
