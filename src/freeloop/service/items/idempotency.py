"""A POST that may be sent again: one key creates one item, and every retry gets the first answer.

The header follows the IETF draft "The Idempotency-Key HTTP Header Field"; its value is taken as it is,
quotes included.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import orjson

from freeloop.database import Database
from freeloop.errors import Unprocessable
from freeloop.service.items.model import NewItem
from freeloop.service.items.store import StoredItem, create_item


class Creation(NamedTuple):
    """The outcome of a POST.

    Args:
        item: As it was when it was created.
        replayed: Whether an earlier request with this key created it.
    """

    item: StoredItem
    replayed: bool


async def create_once(database: Database, key: str, item: NewItem) -> Creation:
    """Create an item, or return the one that an earlier request with the same key created.

    A key is known for as long as it is kept (:class:`freeloop.service.items.retention.ItemRetention`).

    Key and item are committed together, so there is no moment in which a crash could leave one without
    the other. A concurrent request with the same key waits for the first one to commit or roll back.

    Args:
        database: Where to.
        key: 1–255 printable ASCII characters.
        item: What to create.

    Raises:
        Unprocessable: The key was used with another body.
    """
    digest = _digest(item)
    async with database.transaction() as transaction:
        taken = await transaction.fetch_value(
            """
            insert into idempotency_keys (key, request_hash) values ($1, $2)
            on conflict (key) do update set key = excluded.key where false -- but locked
            returning true
            """,
            key,
            digest,
        )
        if taken:
            created = await create_item(transaction, item)
            await transaction.execute(
                """
                update idempotency_keys set item_id = $2, revision = $3, document = $4::text::json
                where key = $1
                """,
                key,
                created.id,
                created.revision,
                created.document,
            )
            return Creation(created, replayed=False)
        # The key cannot go between the two statements: its row is locked by the first.
        [kept] = await transaction.fetch(
            "select request_hash, item_id, revision, document::text from idempotency_keys where key = $1", key
        )
    if kept["request_hash"] != digest:
        raise Unprocessable(
            "Idempotency-Key was used with another body",
            "The first request with this key had another body, and a key stands for one request. Send "
            "the same body to get the same answer, or a new key to create another item.",
        )
    return Creation(StoredItem(kept["item_id"], kept["revision"], kept["document"]), replayed=True)


def _digest(item: NewItem) -> bytes:
    # Of what the body means, not of its bytes: a client that retries may write its JSON in another order.
    return hashlib.sha256(orjson.dumps(item.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).digest()
