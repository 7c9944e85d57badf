"""Every error that Freeloop raises, as one tree; each knows the HTTP status that it becomes.

::

    FreeloopError                     500
    ├── StartError                    the process stops with exit code 1
    │   ├── SettingsError             a setting has a wrong value
    │   ├── EmbeddedServerError       the embedded PostgreSQL could not be started
    │   └── MigrationError            a migration failed, or an applied one was changed
    ├── RequestError                  the caller can mend it
    │   ├── NotFound                  404
    │   ├── Conflict                  409
    │   ├── PreconditionFailed        412
    │   ├── Unprocessable             422
    │   └── Unauthorized              401
    ├── Unavailable                   503, with Retry-After
    │   ├── DatabaseUnavailable       the server cannot be reached, or the connection broke
    │   ├── PoolTimeout               no connection came free in time
    │   └── ThreadsBusy               no thread came free in time
    ├── InspectionFailed              a process did not answer what was asked of it
    ├── StatementTimeout              504
    ├── TaskError                     500
    │   ├── TaskFailed                a durable task has failed, for good
    │   ├── TaskCancelled             it was cancelled
    │   └── TaskLost                  another worker has it
    └── OutboundError                 502
        ├── UpstreamUnreachable       502, no connection, or it broke before the answer was complete
        ├── UpstreamTimeout           504
        ├── UpstreamStatus            502, the answer's status was an error
        ├── UrlRefused                422, a URL that a user supplied leads where calls may not go
        ├── RedirectRefused           502, a redirect does
        ├── UpstreamBodyInvalid       502, the answer was too large or not what was asked for
        └── UpstreamNotCalled         503, with Retry-After: nothing was sent
            ├── UpstreamSuspended     it failed too often, and is left alone for a while
            └── UpstreamBusy          its turn did not come in time: the rate limit, or the calls at once

Any room may import this module; it imports nothing of ours.
"""

from __future__ import annotations

import copy
import math
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


class Conflict(RequestError):
    """The state of the resource does not allow it."""

    status = 409


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


class InspectionFailed(FreeloopError):
    """A process could not be looked into: there is none, or it did not answer."""

    title = "No answer"


class StatementTimeout(FreeloopError):
    """A statement ran longer than its time limit and was cancelled on the server."""

    status = 504
    title = "Database statement timed out"


class TaskError(FreeloopError):
    """A durable task has not come to the end that was waited for."""

    title = "Task failed"


class TaskFailed(TaskError):
    """It has failed, and does not run again by itself."""


class TaskCancelled(TaskError):
    """It was cancelled."""

    title = "Task cancelled"


class TaskLost(TaskError):
    """The execution is no longer the task's own: its worker was taken for dead, and another has it."""

    title = "Task lost"


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
    """No connection could be made, or it broke before the answer was complete.

    Args:
        detail: What was called and how it failed.
        source: The name of the configured source, where the call had one.
        sent: Whether the request may have been sent; False: surely not, so that any may be sent again.
        lasting: Whether it would fail in the same way again, at once: a certificate that is not trusted, a
            client that is closed.
        late: Whether the time was up that a connection may take.
    """

    title = "Upstream unreachable"

    def __init__(
        self,
        detail: str,
        *,
        source: str | None = None,
        sent: bool = True,
        lasting: bool = False,
        late: bool = False,
    ) -> None:
        super().__init__(detail, source=source)
        self.sent = sent
        self.lasting = lasting
        self.late = late


class UpstreamTimeout(OutboundError):
    """The answer was not complete within the time limit.

    Args:
        detail: What was called and how it failed.
        source: The name of the configured source, where the call had one.
        seconds: For how long the upstream was waited for; infinity where that is not known.
    """

    status = 504
    title = "Upstream too slow"

    def __init__(self, detail: str, *, source: str | None = None, seconds: float = math.inf) -> None:
        super().__init__(detail, source=source)
        self.seconds = seconds


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


class UrlRefused(OutboundError):
    """The URL is not one that a user may have called: nothing was sent."""

    status = 422
    title = "URL refused"


class RedirectRefused(OutboundError):
    """The upstream redirected to where the call may not go; the hop was not made."""

    title = "Redirect refused"


class UpstreamBodyInvalid(OutboundError):
    """The answer's body was larger than allowed, or not what was asked for."""

    title = "Upstream answered with an unusable body"


class UpstreamNotCalled(OutboundError):
    """The upstream was not called, by a decision of our own; nothing was sent.

    Args:
        detail: What was not called, why, and when it will be.
        source: The name of the configured source, where the call had one.
        retry_after: Whole seconds after which a retry is sensible; 1 at least.
    """

    status = 503
    title = "Upstream not called"

    def __init__(self, detail: str, *, source: str | None = None, retry_after: int = 1) -> None:
        super().__init__(detail, source=source)
        self.retry_after = max(1, retry_after)

    @property
    def headers(self) -> Mapping[str, str]:
        """``Retry-After`` in whole seconds."""
        return {"Retry-After": str(self.retry_after)}


class UpstreamSuspended(UpstreamNotCalled):
    """Calls to the upstream failed too often; it is left alone for a while."""

    title = "Upstream suspended"


class UpstreamBusy(UpstreamNotCalled):
    """The call's turn did not come in time: too many at once, or too many a second."""

    title = "Too many calls to the upstream"


def duplicate(error: BaseException) -> BaseException:
    """Return an exception that says the same; raising either leaves the other's traceback alone.

    It has the traceback so far, which leads to the place where the error occurred.
    """
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - it takes other arguments than it keeps, as an exception may
        try:
            twin = type(error).__new__(type(error), *error.args)
            twin.__dict__.update(error.__dict__)
        except Exception:  # noqa: BLE001 - nothing of it may keep the others from hearing of it
            return error
    twin.__cause__ = error.__cause__
    twin.__context__ = error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin.with_traceback(error.__traceback__)
