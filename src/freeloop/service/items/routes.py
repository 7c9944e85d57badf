"""The routes under ``/items``. Answers are the database's JSON as bytes; the models document them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic.json_schema import SkipJsonSchema

from freeloop.dependencies import Db, find_kit
from freeloop.errors import PreconditionFailed
from freeloop.gate.idempotency import idempotency_key
from freeloop.gate.problems import responses
from freeloop.service.dependencies import Changes, require_token
from freeloop.service.items.changelog import CURSOR_PATTERN, Cursor, parse_cursor
from freeloop.service.items.conditions import CONDITION_PATTERN, Condition, parse_condition, render_tag
from freeloop.service.items.idempotency import Creation, create_once
from freeloop.service.items.model import LARGEST_ID, Item, ItemChange, ItemPage, ItemPatch, NewItem
from freeloop.service.items.page import PARAMETERS, read_query
from freeloop.service.items.store import (
    StoredItem,
    change_item,
    create_item,
    delete_item,
    list_items,
    read_item,
)

router = APIRouter(prefix="/items", tags=["items"])

ItemIdPath = Annotated[int, Path(ge=1, le=LARGEST_ID, description="The item's id.")]

_ETAG: Final = {"ETag": {"description": "The item's version.", "schema": {"type": "string"}}}
_CREATED: Final = {
    **_ETAG,
    "Location": {"description": "Where the item is.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true` where an earlier request with this key created the item.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}


def _header_values(request: Request, name: str) -> list[str]:
    # All lines of the header: a list may be spread over several (RFC 9110, section 5.3).
    return request.headers.getlist(name)


async def _if_match(
    request: Request,
    _: Annotated[
        str | SkipJsonSchema[None],
        Header(
            alias="If-Match",
            description="Only if the item's version is one of these; weak tags never match.",
            json_schema_extra={"pattern": CONDITION_PATTERN},
        ),
    ] = None,
) -> Condition | None:
    return parse_condition("If-Match", _header_values(request, "If-Match"))


async def _if_none_match(
    request: Request,
    _: Annotated[
        str | SkipJsonSchema[None],
        Header(
            alias="If-None-Match",
            description="304 without a body if the item's version is one of these.",
            json_schema_extra={"pattern": CONDITION_PATTERN},
        ),
    ] = None,
) -> Condition | None:
    return parse_condition("If-None-Match", _header_values(request, "If-None-Match"))


async def _resume_point(
    changes: Changes,
    last: Annotated[
        str | SkipJsonSchema[None],
        Header(
            alias="Last-Event-ID",
            description="The id of the last event that was seen; without it the stream begins now.",
            json_schema_extra={"pattern": CURSOR_PATTERN},
        ),
    ] = None,
) -> Cursor:
    changes.admit()
    return await changes.find_end() if last is None else parse_cursor(last)


IfMatch = Annotated[Condition | None, Depends(_if_match)]
IfNoneMatch = Annotated[Condition | None, Depends(_if_none_match)]
IdempotencyKey = Annotated[
    str | None,
    idempotency_key(
        "A retry with the same key and body, within 24 hours, creates nothing and gets the first answer; "
        "with another body it is refused (422)."
    ),
]


def _answer(item: StoredItem, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        item.document,
        status,
        {"ETag": render_tag(item.revision), **(headers or {})},
        "application/json",
    )


def _revisions(condition: Condition | None) -> list[int] | None:
    return None if condition is None else condition.revisions()


@router.get("", response_model=ItemPage, responses=responses(504), openapi_extra={"parameters": PARAMETERS})
async def list_all(request: Request) -> Response:
    """List items in the order of their ids, a page at a time.

    Items that are created or deleted between two pages move no other item: each one that is there all the
    time is on exactly one page.
    """
    query = read_query(request)
    page = await list_items(find_kit(request).database, limit=query.limit, after=query.after)
    return Response(page, media_type="application/json")


@router.post(
    "",
    status_code=201,
    response_model=Item,
    dependencies=[require_token],
    responses=responses(401, 504) | {201: {"description": "Created and stored.", "headers": _CREATED}},
)
async def create(database: Db, item: NewItem, key: IdempotencyKey) -> Response:
    """Create an item. It is committed before the answer is sent."""
    if key is None:
        creation = Creation(await create_item(database, item), replayed=False)
    else:
        creation = await create_once(database, key, item)
    headers = {"Location": f"/items/{creation.item.id}"}
    if creation.replayed:
        headers["Idempotency-Replayed"] = "true"
    return _answer(creation.item, 201, headers)


# Before /{item_id}, which would take "changes" for an id.
@router.get(
    "/changes",
    response_class=EventSourceResponse,
    responses=responses(504),
)
async def follow(
    changes: Changes, position: Annotated[Cursor, Depends(_resume_point)]
) -> AsyncIterator[ItemChange]:
    """Follow the items: each insert, update and delete as a server-sent event, in order, each once.

    The event's name is `insert`, `update` or `delete`; its data is
    `{"id": 7, "item": {…} or null, "at": "…"}`. The first thing sent is an id without an event, so a client
    that loses the connection at any time resumes with `Last-Event-ID`, as browsers do by themselves, and
    misses nothing. Without that header the stream begins now.

    The event `reset` says that the changes behind `Last-Event-ID` are no longer kept (24 hours by default):
    read all items again; the stream goes on from there. A comment is sent every 15 seconds of silence. The
    stream ends when the service shuts down.
    """
    yield _event(id=str(position), retry=1_000, comment="the stream begins behind this id")
    async with aclosing(changes.subscribe(position)) as stream:
        async for change in stream:
            yield _event(event=change.kind, id=str(change.cursor), raw_data=change.data)


def _event(**fields: Any) -> ItemChange:  # noqa: ANN401  # the fields of ServerSentEvent
    # FastAPI documents the type that the generator is annotated with, and sends a ServerSentEvent as it is.
    return cast("ItemChange", ServerSentEvent(**fields))


_ITEM_FOUND: Final[dict[int | str, dict[str, Any]]] = {200: {"description": "The item.", "headers": _ETAG}}


@router.get(
    "/{item_id}",
    response_model=Item,
    responses=responses(404, 412, 504)
    | _ITEM_FOUND
    | {304: {"description": "The version is the one named in `If-None-Match`.", "headers": _ETAG}},
)
async def read(database: Db, item_id: ItemIdPath, match: IfMatch, none_match: IfNoneMatch) -> Response:
    """Read an item; its ETag is what a change sends back as `If-Match`."""
    item = await read_item(database, item_id)
    allowed = _revisions(match)
    if allowed is not None and item.revision not in allowed:
        raise PreconditionFailed(
            f"Item {item_id} has another version",
            f"If-Match does not name the current version, which is {render_tag(item.revision)}.",
        )
    if none_match is not None and none_match.has(item.revision):
        return Response(status_code=304, headers={"ETag": render_tag(item.revision)})
    return _answer(item)


@router.patch(
    "/{item_id}",
    response_model=Item,
    dependencies=[require_token],
    responses=responses(401, 404, 412, 504) | _ITEM_FOUND,
)
async def change(database: Db, item_id: ItemIdPath, patch: ItemPatch, match: IfMatch) -> Response:
    """Change an item by a JSON merge patch: what is left out stays, `"description": null` clears it.

    With `If-Match` a change that somebody made since the item was read is not overwritten (412).
    """
    return _answer(await change_item(database, item_id, patch, revisions=_revisions(match)))


@router.delete(
    "/{item_id}",
    status_code=204,
    dependencies=[require_token],
    responses=responses(401, 404, 412, 504),
)
async def delete(database: Db, item_id: ItemIdPath, match: IfMatch) -> Response:
    """Delete an item; with `If-Match` only if nobody changed it since it was read (412)."""
    await delete_item(database, item_id, revisions=_revisions(match))
    return Response(status_code=204)
