"""Errors as RFC 9457 problem documents: the status, a title that names what is wrong, the request id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import asyncpg
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match

from freeloop.errors import FreeloopError
from freeloop.scope import current_scope

MEDIA_TYPE: Final = "application/problem+json"
_MOST_MISTAKES: Final = 20
_LONGEST_TEXT: Final = 200
# What is refused because of other rows: the caller can mend it. A CHECK or NOT NULL speaks of the row alone;
# it fails where the handler has let through, or has made, what its own model should refuse. The caller cannot
# know which, so that stays an error of the app: 500, with the stack in the log.
_CONFLICTS: Final[dict[type[asyncpg.IntegrityConstraintViolationError], str]] = {
    asyncpg.UniqueViolationError: "there is a row with the same values already",
    asyncpg.ExclusionViolationError: "a row that is there already excludes it",
    asyncpg.ForeignKeyViolationError: "what it refers to is not there, or is still referred to",
    asyncpg.RestrictViolationError: "it is still referred to",
}


class FieldMistake(BaseModel):
    """One value of the request that is not acceptable."""

    field: str = Field(description="Where it stands: `body.price`, `query.limit`, `path.item_id`.")
    message: str = Field(description="What was expected.")


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(default="about:blank", description="Always `about:blank`: the status says the kind.")
    title: str = Field(description="One sentence that names the field, the limit or the resource.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was expected, what came, and what to do.")
    request_id: str = Field(description="The id to look for in the logs; also in `X-Request-ID`.")
    errors: list[FieldMistake] | None = Field(default=None, description="One entry per wrong value (422).")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problem documents that a route may answer, for FastAPI's ``responses=``.

    Args:
        statuses: Those beside 400, 413, 422, 500 and 503, which any route may answer.
    """
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({400, 413, 422, 500, 503, *statuses})
    }


def problem_of(error: FreeloopError) -> dict[str, Any]:
    """Return the problem document of an error of ours, with the current request id."""
    return _problem(error.status, error.title, error.detail)


def problem_response(
    status: int,
    title: str,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Render a problem document with the current request id."""
    content = _problem(status, title, detail, errors)
    return Response(orjson.dumps(content), status, headers, MEDIA_TYPE)


def answer_error(error: FreeloopError) -> Response:
    """Render the problem document of an error of ours."""
    return problem_response(error.status, error.title, error.detail, headers=error.headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error of ours, of Starlette and of validation as a problem document."""
    answer_unhandled(app)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)


def answer_unhandled(app: Starlette) -> None:
    """Make ``app`` answer errors of ours, and conflicts with stored data, where it does not do so itself."""
    app.exception_handlers.setdefault(FreeloopError, answer_own)
    app.exception_handlers.setdefault(asyncpg.IntegrityConstraintViolationError, answer_conflict)
    app.exception_handlers.setdefault(asyncpg.SerializationError, answer_collision)
    app.exception_handlers.setdefault(asyncpg.DeadlockDetectedError, answer_collision)


def _problem(
    status: int,
    title: str,
    detail: str,
    errors: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    scope = current_scope()
    problem = {
        "type": "about:blank",
        "title": _printable(title),
        "status": status,
        "detail": _printable(detail),
        "request_id": scope.id if scope else "-",
    }
    if errors:
        problem["errors"] = errors
    return problem


def _printable(text: str) -> str:
    # What the caller sent may hold lone surrogates, which no JSON encoder turns into UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


async def answer_own(_: Request, error: Exception) -> Response:
    """Answer an error of ours with its problem document; an exception handler for Starlette."""
    if not isinstance(error, FreeloopError):
        raise error
    return answer_error(error)


async def answer_conflict(_: Request, error: Exception) -> Response:
    """Answer 409 where the database has refused a change because of other rows; else raise it again.

    It names the constraint and the table. PostgreSQL's own detail shows values of rows: it is not sent.
    """
    reason = next((said for kind, said in _CONFLICTS.items() if isinstance(error, kind)), None)
    if reason is None:
        raise error
    constraint, table = getattr(error, "constraint_name", None), getattr(error, "table_name", None)
    return problem_response(
        409,
        f"It conflicts with what is stored{f' in {table}' if table else ''}",
        f"The change was not made: {reason}{f' (constraint {constraint})' if constraint else ''}.",
    )


async def answer_collision(_: Request, error: Exception) -> Response:
    """Answer 503 where transactions collided and this one was rolled back: again, it may well succeed."""
    if not isinstance(error, (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)):
        raise error
    return problem_response(
        503,
        "It collided with another change at the same time",
        "Nothing was changed. Send the request again; the app itself can do so by Database.repeat.",
        headers={"Retry-After": "1"},
    )


async def _answer_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    phrase = HTTPStatus(error.status_code).phrase
    titles = {
        404: f"No such page: {request.url.path}",
        405: f"{request.method} is not allowed on {request.url.path}",
        413: "The request body is larger than allowed",
    }
    title = titles.get(error.status_code, phrase)
    detail = error.detail if error.detail and error.detail != phrase else title
    headers = error.headers
    if error.status_code == 405 and (allowed := _allowed_methods(request)):
        # The router only names those of the first route that has the path.
        headers = {**(headers or {}), "Allow": ", ".join(allowed)}
    return problem_response(error.status_code, title, str(detail), headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    routes = request.app.router.routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _answer_validation(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found = error.errors()
    # The answer must not grow with what came: a body can hold a mistake in every tenth byte.
    mistakes = [_say_mistake(mistake, request) for mistake in found[:_MOST_MISTAKES]]
    first = mistakes[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return problem_response(
        422,
        f"{first['field']}: {first['message']}{more}",
        "; ".join(f"{mistake['field']}: {mistake['message']}" for mistake in mistakes),
        errors=mistakes,
    )


def _say_mistake(mistake: Mapping[str, Any], request: Request) -> dict[str, str]:
    """Return the field and what is wrong with it; of a body that is no JSON, clearer than FastAPI does."""
    place, message = tuple(mistake["loc"]), str(mistake["msg"])
    if mistake["type"] == "json_invalid" and len(place) == 2:  # the body, and the character
        message = f"expected JSON, at character {place[1]}: {mistake['ctx']['error']}"
        place = place[:1]
    elif place == ("body",) and "json" not in (came := request.headers.get("content-type", "none")):
        message = f"expected Content-Type: application/json, came {came}"
    return {
        "field": _printable(".".join(map(str, place)))[:_LONGEST_TEXT],
        "message": _printable(message)[:_LONGEST_TEXT],
    }
