"""Items in PostgreSQL. It knows no HTTP; rows come back as rendered JSON, so no row is built twice."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import asyncpg

from freeloop.database import Database, Queries
from freeloop.errors import NotFound, PreconditionFailed
from freeloop.service.items.model import ItemPatch, NewItem


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item.

    Args:
        id: Its id.
        revision: Counts its changes from 1.
        document: It as JSON.
    """

    id: int
    revision: int
    document: str


@dataclass(frozen=True, slots=True)
class _Page:
    """Makes a page out of its rows; equal for equal limits, as reads that are shared must be."""

    limit: int

    def __call__(self, rows: list[asyncpg.Record]) -> bytes:
        last = rows[self.limit - 1][0] if len(rows) > self.limit else "null"
        documents = ",".join([row[1] for row in rows[: self.limit]])
        return f'{{"items":[{documents}],"next":{last}}}'.encode()


async def list_items(database: Database, *, limit: int, after: int = 0) -> bytes:
    """Return at most ``limit`` items whose ids are greater than ``after``, as the JSON of a page.

    A page begins behind an id and not behind a count (keyset pagination), so items that come or go
    between two pages move no other item over the edge. Callers that wait for the same page share one query.
    """
    # One more than asked for tells whether there is a next page.
    return await database.shared(
        "select id, document_of(items)::text from items where id > $1 order by id limit $2",
        after,
        limit + 1,
        encode=_Page(limit),
    )


async def create_item(queries: Queries, item: NewItem) -> StoredItem:
    """Insert an item."""
    [row] = await queries.fetch(
        """
        insert into items (name, description, price, tags) values ($1, $2, $3, $4)
        returning id, revision, document_of(items)::text
        """,
        item.name,
        item.description,
        item.price,
        item.tags,
    )
    return StoredItem(*row)


async def read_item(queries: Queries, item_id: int) -> StoredItem:
    """Return one item.

    Raises:
        NotFound: There is none with this id.
    """
    row = await queries.fetch_row(
        "select id, revision, document_of(items)::text from items where id = $1", item_id
    )
    if row is None:
        raise _not_found(item_id)
    return StoredItem(*row)


async def change_item(
    queries: Queries, item_id: int, patch: ItemPatch, *, revisions: Collection[int] | None = None
) -> StoredItem:
    """Write the fields that the patch holds.

    Args:
        queries: Where to.
        item_id: Which item.
        patch: An empty one writes nothing and returns the item.
        revisions: Change it only while its revision is one of these; None for any.

    Raises:
        NotFound: There is none with this id.
        PreconditionFailed: It has another revision by now.
    """
    changes = patch.changes()
    if not changes:
        item = await read_item(queries, item_id)
        if revisions is not None and item.revision not in revisions:
            raise _lost_update(item_id, item.revision)
        return item
    assignments = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, start=3))
    # PostgreSQL looks at the condition again after it waited for another change of the row, so the
    # comparison and the change are one step.
    row = await queries.fetch_row(
        f"""
        update items set {assignments} where id = $1 and ($2::bigint[] is null or revision = any($2))
        returning id, revision, document_of(items)::text
        """,  # noqa: S608  # the columns are the model's field names
        item_id,
        revisions,
        *changes.values(),
    )
    if row is None:
        raise await _explain_no_row(queries, item_id)
    return StoredItem(*row)


async def delete_item(queries: Queries, item_id: int, *, revisions: Collection[int] | None = None) -> None:
    """Delete an item; arguments and errors as of :func:`change_item`."""
    row = await queries.fetch_row(
        """
        delete from items where id = $1 and ($2::bigint[] is null or revision = any($2)) returning id
        """,
        item_id,
        revisions,
    )
    if row is None:
        raise await _explain_no_row(queries, item_id)


async def _explain_no_row(queries: Queries, item_id: int) -> NotFound | PreconditionFailed:
    row = await queries.fetch_row("select revision from items where id = $1", item_id)
    return _not_found(item_id) if row is None else _lost_update(item_id, row[0])


def _not_found(item_id: int) -> NotFound:
    return NotFound(
        f"There is no item {item_id}", f"No item has the id {item_id}; it was deleted or never there."
    )


def _lost_update(item_id: int, revision: int) -> PreconditionFailed:
    return PreconditionFailed(
        f"Item {item_id} was changed since it was read",
        f'If-Match names another version than the current one, which is "{revision}". '
        "Read the item again and repeat the change on what you find.",
    )
