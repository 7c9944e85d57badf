"""External data: JSON from the configured sources, one or several at once, untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Query, Response

from freeloop.errors import OutboundError, Unprocessable, UpstreamTimeout
from freeloop.gate.problems import problem_of, problem_response, responses
from freeloop.outbound import Client
from freeloop.service.dependencies import Out, Sources

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


@router.get("/fetch-data", response_class=Response, responses={200: _ANSWER, **responses(502, 504)})
async def fetch_data(
    client: Out,
    sources: Sources,
    source: Annotated[
        list[str],
        Query(
            default_factory=list,
            description="The name of a configured source; repeat it for several. None: the first configured.",
        ),
    ],
    policy: Annotated[
        Literal["collect", "first-error"],
        Query(
            description="With several sources: `collect` answers with what came and lists failures; "
            "`first-error` cancels the others at the first failure and answers with it."
        ),
    ] = "collect",
) -> Response:
    """Fetch JSON from external APIs without blocking; several are fetched at the same time.

    Each call has the time limit FREELOOP_FETCH_TIMEOUT and the size limit FREELOOP_FETCH_MAX_BODY. The JSON
    of a source is passed on byte by byte, so numbers and the order of keys stay as they are. A source named
    twice is fetched once. Where every source failed, the answer is 504 when all were too slow, else 502.
    """
    chosen = _choose(source, sources)
    if len(chosen) == 1:
        ((name, url),) = chosen.items()
        return _json(b'{"data":' + await _fetch(client, name, url) + b"}")
    if policy == "first-error":
        return _json(_several(await _fetch_all(client, chosen), {}))
    bodies, errors = await _fetch_each(client, chosen)
    return _json(_several(bodies, errors)) if bodies else _answer_all_failed(errors)


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


async def _fetch(client: Client, name: str, url: str) -> bytes:
    response = await client.get(url, headers={"Accept": "application/json"}, source=name)
    response.raise_for_status()
    return await response.json_bytes()


async def _fetch_all(client: Client, chosen: Mapping[str, str]) -> dict[str, bytes]:
    """Fetch all at the same time; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(_fetch(client, name, url)) for name, url in chosen.items()}
    except ExceptionGroup as failures:
        # The group keeps them in the order in which they happened.
        raise failures.exceptions[0] from None
    return {name: task.result() for name, task in tasks.items()}


async def _fetch_each(
    client: Client, chosen: Mapping[str, str]
) -> tuple[dict[str, bytes], dict[str, OutboundError]]:
    """Fetch all at the same time; return what came, and why the rest did not."""
    bodies: dict[str, bytes] = {}
    errors: dict[str, OutboundError] = {}

    async def fetch(name: str, url: str) -> bytes | OutboundError:
        try:
            return await _fetch(client, name, url)
        except OutboundError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(fetch(name, url)) for name, url in chosen.items()}
    for name, task in tasks.items():
        outcome = task.result()
        if isinstance(outcome, OutboundError):
            errors[name] = outcome
        else:
            bodies[name] = outcome
    return bodies, errors


def _several(bodies: Mapping[str, bytes], errors: Mapping[str, OutboundError]) -> bytes:
    data = b",".join(orjson.dumps(name) + b":" + body for name, body in bodies.items())
    problems = {name: problem_of(error) for name, error in errors.items()}
    return b'{"data":{' + data + b'},"errors":' + orjson.dumps(problems) + b"}"


def _answer_all_failed(errors: Mapping[str, OutboundError]) -> Response:
    slow = all(isinstance(error, UpstreamTimeout) for error in errors.values())
    return problem_response(
        504 if slow else 502,
        f"None of the {len(errors)} sources answered" + (" in time" if slow else ""),
        "; ".join(error.detail for error in errors.values()),
        errors=[{"field": f"data.{name}", "message": error.detail} for name, error in errors.items()],
    )


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
