"""Every error that Freeloop raises, as one tree; each knows the HTTP status that it becomes.

::

    FreeloopError                     500
    ├── StartError                    the process stops with exit code 1
    │   ├── SettingsError             a setting has a wrong value
    │   ├── EmbeddedServerError       the embedded PostgreSQL could not be started
    │   └── MigrationError            a migration failed, or an applied one was changed
    ├── RequestError                  the caller can mend it
    │   ├── NotFound                  404
    │   ├── PreconditionFailed        412
    │   ├── Unprocessable             422
    │   └── Unauthorized              401
    ├── Unavailable                   503, with Retry-After
    │   ├── DatabaseUnavailable       the server cannot be reached, or the connection broke
    │   ├── PoolTimeout               no connection came free in time
    │   └── ThreadsBusy               no thread came free in time
    ├── StatementTimeout              504
    └── OutboundError                 502
        ├── UpstreamUnreachable       502, no connection, or it broke before the answer was complete
        ├── UpstreamTimeout           504
        ├── UpstreamStatus            502, the answer's status was an error
        └── UpstreamBodyInvalid       502, the answer was too large or not what was asked for

Any room may import this module; it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class FreeloopError(Exception):
    """The root of the tree.

    Args:
        detail: What was expected, what came, and what to do.
    """

    status: ClassVar[int] = 500
    title: str = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers that belong to this error, such as ``Retry-After``."""
        return {}


class StartError(FreeloopError):
    """The process cannot start; the command line prints the message and exits with code 1."""

    title = "Start refused"


class SettingsError(StartError):
    """One or more settings have a wrong value.

    Args:
        mistakes: One readable line per mistake: the setting, the value and what is allowed.
    """

    title = "Wrong settings"

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class EmbeddedServerError(StartError):
    """The embedded PostgreSQL could not be started or reached."""

    title = "Embedded PostgreSQL not available"


class MigrationError(StartError):
    """A migration failed, is malformed, or was changed after it had been applied."""

    title = "Migration refused"


class RequestError(FreeloopError):
    """The request cannot be served as it is; the caller can mend it.

    Args:
        title: One sentence that names the field, the limit or the resource.
        detail: What was expected and what came; the title, where left out.
    """

    status = 400

    def __init__(self, title: str, detail: str | None = None) -> None:
        super().__init__(detail or title)
        self.title = title


class NotFound(RequestError):
    """The resource does not exist."""

    status = 404


class PreconditionFailed(RequestError):
    """``If-Match`` named a version that is no longer current."""

    status = 412


class Unprocessable(RequestError):
    """A value is well-formed but not acceptable."""

    status = 422


class Unauthorized(RequestError):
    """The bearer token is missing or wrong."""

    status = 401

    @property
    def headers(self) -> Mapping[str, str]:
        """The challenge that RFC 6750 asks for."""
        return {"WWW-Authenticate": 'Bearer realm="freeloop"'}


class Unavailable(FreeloopError):
    """Something the request needs is not available now; it is worth trying again.

    Args:
        detail: What is not available, and since when where that is known.
        retry_after: Whole seconds after which a retry is sensible.
    """

    status = 503
    title = "Service unavailable"

    def __init__(self, detail: str, *, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after

    @property
    def headers(self) -> Mapping[str, str]:
        """``Retry-After`` in whole seconds."""
        return {"Retry-After": str(self.retry_after)}


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached, or the connection broke during the statement."""

    title = "Database unavailable"


class PoolTimeout(Unavailable):
    """No connection came free within the time limit."""

    title = "No database connection free"


class ThreadsBusy(Unavailable):
    """No thread came free within the time limit."""

    title = "No thread free"


class StatementTimeout(FreeloopError):
    """A statement ran longer than its time limit and was cancelled on the server."""

    status = 504
    title = "Database statement timed out"


class OutboundError(FreeloopError):
    """A call to an external API failed.

    Args:
        detail: What was called and how it failed.
        source: The name of the configured source, where the call had one.
    """

    status = 502
    title = "Upstream failed"

    def __init__(self, detail: str, *, source: str | None = None) -> None:
        super().__init__(detail)
        self.source = source


class UpstreamUnreachable(OutboundError):
    """No connection could be made, or it broke before the answer was complete."""

    title = "Upstream unreachable"


class UpstreamTimeout(OutboundError):
    """The answer was not complete within the time limit."""

    status = 504
    title = "Upstream too slow"


class UpstreamStatus(OutboundError):
    """The upstream answered with an error status.

    Args:
        detail: What was called and what came.
        upstream_status: The status that came.
        source: The name of the configured source, where the call had one.
    """

    title = "Upstream answered with an error"

    def __init__(self, detail: str, *, upstream_status: int, source: str | None = None) -> None:
        super().__init__(detail, source=source)
        self.upstream_status = upstream_status


class UpstreamBodyInvalid(OutboundError):
    """The answer's body was larger than allowed, or not what was asked for."""

    title = "Upstream answered with an unusable body"
