"""External data: JSON from the configured sources, one or several at once, untouched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from freeloop.errors import OutboundError, Unprocessable, UpstreamNotCalled, UpstreamTimeout
from freeloop.gate.problems import problem_of, problem_response, responses
from freeloop.outbound import Client
from freeloop.outbound.many import fetch_all
from freeloop.service.state import state_of

router = APIRouter(tags=["external data"])

_POST: Final = {"userId": 1, "id": 1, "title": "Notes on bread", "body": "I spent the morning at the bakery."}
_USER: Final = {"id": 1, "name": "Mara Lindqvist", "username": "mara", "email": "mara@example.com"}
_ANSWER: Final[dict[str, Any]] = {
    "description": "One source: its JSON under `data`. Several: each under its name, failures in `errors`.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["data"],
                "properties": {
                    "data": {"description": "The JSON of the source, or an object of it by source name."},
                    "errors": {
                        "type": "object",
                        "description": "With several sources: one problem per source that failed.",
                        "additionalProperties": {"$ref": "#/components/schemas/Problem"},
                    },
                },
            },
            "examples": {
                "one source": {"value": {"data": [_POST]}},
                "several sources": {"value": {"data": {"posts": [_POST], "users": [_USER]}, "errors": {}}},
                "several sources, one failed": {
                    "value": {
                        "data": {"posts": [_POST]},
                        "errors": {
                            "users": {
                                "type": "about:blank",
                                "title": "Upstream too slow",
                                "status": 504,
                                "detail": "source 'users' (GET http://127.0.0.1:8081/users) did not answer "
                                "completely within 10 s: time was up before it answered",
                                "request_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                            }
                        },
                    }
                },
            },
        }
    },
}


# For the document only: to read these two from a request takes FastAPI 28 µs, and two dependencies would take
# it 20 µs. The call itself takes 13 µs beside its transport.
_PARAMETERS: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "source",
            "in": "query",
            "required": False,
            "description": "The name of a configured source; repeat it for several. "
            "None: the first configured.",
            "schema": {"type": "array", "items": {"type": "string"}, "title": "Source"},
        },
        {
            "name": "policy",
            "in": "query",
            "required": False,
            "description": "With several sources: `collect` answers with what came and lists failures; "
            "`first-error` cancels the others at the first failure and answers with it.",
            "schema": {"type": "string", "enum": ["collect", "first-error"], "default": "collect"},
        },
    ]
}


@router.get(
    "/fetch-data",
    response_class=Response,
    responses={200: _ANSWER, **responses(502, 504)},
    openapi_extra=_PARAMETERS,
)
async def fetch_data(request: Request) -> Response:
    """Fetch JSON from external APIs without blocking; several are fetched at the same time.

    Each call has the time limit FREELOOP_FETCH_TIMEOUT and the size limit FREELOOP_FETCH_MAX_BODY. The JSON
    of a source is passed on byte by byte, so numbers and the order of keys stay as they are. A source named
    twice is fetched once. A source that fails is left alone for a while: then the answer is 503 with
    Retry-After. Where every source failed, it is 503 when none was called, 504 when all were too slow, else
    502.
    """
    state = state_of(request)
    policy = request.query_params.get("policy", "collect")
    if policy not in {"collect", "first-error"}:
        raise Unprocessable("query.policy: expected 'collect' or 'first-error'", f"It is '{policy[:64]}'.")
    chosen = _choose(request.query_params.getlist("source"), state.sources)
    fetcher = _Fetcher(state.outbound, chosen)
    if len(chosen) == 1:
        (name,) = chosen
        return _json(b'{"data":' + await fetcher.get(name) + b"}")
    if policy == "first-error":
        bodies = await fetch_all(fetcher, chosen, limit=len(chosen))
        return _json(_several(dict(zip(chosen, bodies, strict=True)), {}))
    return _answer_each(chosen, await fetch_all(fetcher, chosen, limit=len(chosen), policy="collect"))


def _choose(names: list[str], sources: Mapping[str, str]) -> dict[str, str]:
    """Return the URLs of the named sources, each once and in the order they were named."""
    wanted = names or list(sources)[:1]
    unknown = [name for name in wanted if name not in sources]
    if not wanted:
        raise Unprocessable("No source is configured", "Name one in FREELOOP_SOURCES, as name=url.")
    if unknown:
        allowed = ", ".join(f"'{name}'" for name in sources) or "none"
        raise Unprocessable(
            f"query.source: no source is called '{unknown[0][:64]}'",
            f"The configured sources are: {allowed}. FREELOOP_SOURCES names them.",
        )
    return {name: sources[name] for name in wanted}


class _Fetcher:
    """Gets the JSON of a source by its name."""

    def __init__(self, client: Client, sources: Mapping[str, str]) -> None:
        self._client = client
        self._sources = sources

    async def get(self, name: str) -> bytes:
        url = self._sources[name]
        response = await self._client.get(url, headers={"Accept": "application/json"}, source=name)
        response.raise_for_status()
        return await response.json_bytes()


def _answer_each(names: Iterable[str], outcomes: Iterable[bytes | Exception]) -> Response:
    """Answer with what came, and why the rest did not."""
    bodies: dict[str, bytes] = {}
    errors: dict[str, OutboundError] = {}
    for name, outcome in zip(names, outcomes, strict=True):
        match outcome:
            case bytes():
                bodies[name] = outcome
            case OutboundError():
                errors[name] = outcome
            case _:
                raise outcome
    return _json(_several(bodies, errors)) if bodies else _answer_all_failed(errors)


def _several(bodies: Mapping[str, bytes], errors: Mapping[str, OutboundError]) -> bytes:
    data = b",".join(orjson.dumps(name) + b":" + body for name, body in bodies.items())
    problems = {name: problem_of(error) for name, error in errors.items()}
    return b'{"data":{' + data + b'},"errors":' + orjson.dumps(problems) + b"}"


def _answer_all_failed(errors: Mapping[str, OutboundError]) -> Response:
    slow = all(isinstance(error, UpstreamTimeout) for error in errors.values())
    not_called = [error for error in errors.values() if isinstance(error, UpstreamNotCalled)]
    resting = len(not_called) == len(errors)
    return problem_response(
        503 if resting else 504 if slow else 502,
        f"None of the {len(errors)} sources answered" + (" in time" if slow else ""),
        "; ".join(error.detail for error in errors.values()),
        headers=min(not_called, key=lambda error: error.retry_after).headers if resting else None,
        errors=[{"field": f"data.{name}", "message": error.detail} for name, error in errors.items()],
    )


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
