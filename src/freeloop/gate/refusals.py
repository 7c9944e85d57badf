"""What the gate itself answers, as problem documents."""

from __future__ import annotations

from starlette.responses import Response

from freeloop.gate.problems import problem_response
from freeloop.scope import Scope


def too_large(announced: int, limit: int) -> Response:
    """413 for a body that announces to be longer than allowed; it is left unread."""
    return problem_response(
        413,
        f"The request body is larger than {limit} bytes",
        f"expected at most {limit} bytes, announced were {announced}.",
        headers={"Connection": "close"},
    )


def malformed() -> Response:
    """400 for what is no HTTP request."""
    return problem_response(
        400,
        "This is no valid HTTP request",
        "expected a request as RFC 9112 describes it; nothing was read of it.",
    )


def head_too_large(limit: int) -> Response:
    """431 for a request whose head does not end."""
    return problem_response(
        431,
        f"The request line and headers are larger than {limit} bytes",
        f"expected at most {limit} bytes before the body, more came.",
    )


def wrong_deadline(header: str, came: str) -> Response:
    """400 for a deadline header that holds no number of seconds."""
    return problem_response(
        400,
        f"The header {header} is no number of seconds",
        f"expected seconds over 0 such as '2.5', got {came[:100]!r}.",
    )


def overloaded(scope: Scope, retry_after: int) -> Response:
    """503 for a request that is shed."""
    return problem_response(
        503,
        f"{scope.route or 'The service'} is overloaded",
        f"More requests came than are served in time; try again in {retry_after} s.",
        headers={"Retry-After": str(retry_after)},
    )


def draining() -> Response:
    """503 for readiness during the drain."""
    return problem_response(
        503,
        "The service is shutting down",
        "Send requests elsewhere; those that still come here are served until the connections close.",
        headers={"Retry-After": "5"},
    )


def deadline_passed(scope: Scope) -> Response:
    """504 for a request whose time is over."""
    allowed = (scope.deadline or scope.started) - scope.started
    return problem_response(
        504,
        "The request took longer than it may",
        f"{scope.route or 'The request'} was cancelled after {allowed:.3g} s, its deadline.",
    )


def cancelled_by_hand(scope: Scope) -> Response:
    """503 for a request that somebody has cancelled, as the console does; no word on trying it again."""
    return problem_response(
        503,
        "The request was cancelled",
        f"{scope.route or 'The request'} was cancelled by hand, by whoever runs the service.",
    )


def cut_at_shutdown(_: Scope) -> Response:
    """503 for a request that was not finished when the time for running requests was over."""
    return problem_response(
        503,
        "The service is shutting down",
        "The request was not finished when the time for running requests was over.",
        headers={"Connection": "close", "Retry-After": "1"},
    )


def failed() -> Response:
    """500 for an error that nobody expected; the log has it."""
    return problem_response(
        500,
        "Internal error",
        "The service failed unexpectedly; the log has the reason under this request id.",
    )
