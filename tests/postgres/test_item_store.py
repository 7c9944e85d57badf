"""Items in PostgreSQL and over HTTP: what is stored, what is refused, and what a retry gets."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest
from items_service import serve_items

from freeloop.errors import NotFound, PreconditionFailed, Unprocessable
from freeloop.service.items.idempotency import create_once
from freeloop.service.items.model import Item, ItemPatch, NewItem
from freeloop.service.items.retention import ItemRetention, Pruned
from freeloop.service.items.store import change_item, create_item, delete_item, read_item

KETTLE = NewItem.model_validate(
    {"name": 'Kettle \\ "é" \n 𝄞', "description": "\t", "price": "12.5", "tags": ["a,b", "{}", 'c"', "NULL"]}
)
BODY = {"name": "Kettle", "price": "12.50"}


@pytest.fixture
async def client(database):
    async with serve_items(database) as (session, _):
        yield session


async def count_items(database):
    return await database.fetch_value("select count(*) from items")


# The store


async def test_an_item_comes_back_as_it_was_sent(database):
    before = datetime.now(UTC) - timedelta(seconds=5)
    created = await create_item(database, KETTLE)
    document = json.loads(created.document)
    assert created == await read_item(database, created.id)
    assert created.revision == 1
    assert document | KETTLE.model_dump(mode="json") == document | {"price": "12.5"}
    assert document["price"] == "12.50"
    item = Item.model_validate(document)
    assert before < item.created_at == item.updated_at
    assert document["created_at"].endswith("Z")


async def test_every_change_makes_a_new_revision_whoever_makes_it(database):
    created = await create_item(database, KETTLE)
    await database.execute("update items set price = 1, revision = 77 where id = $1", created.id)
    changed = await read_item(database, created.id)
    assert changed.revision == 2
    assert json.loads(changed.document)["updated_at"] > json.loads(created.document)["updated_at"]


async def test_a_patch_changes_what_it_names(database):
    created = await create_item(database, KETTLE)
    patch = ItemPatch.model_validate({"description": None, "tags": []})
    changed = await change_item(database, created.id, patch)
    expected = json.loads(created.document) | {"description": None, "tags": []}
    assert json.loads(changed.document) | {"updated_at": None} == expected | {"updated_at": None}


async def test_an_empty_patch_changes_nothing(database):
    created = await create_item(database, KETTLE)
    assert await change_item(database, created.id, ItemPatch()) == created
    with pytest.raises(PreconditionFailed):
        await change_item(database, created.id, ItemPatch(), revisions=[2])


async def test_of_twenty_changes_of_one_version_one_is_made(database):
    created = await create_item(database, KETTLE)
    outcomes = await asyncio.gather(
        *(
            change_item(database, created.id, ItemPatch.model_validate({"name": f"n{number}"}), revisions=[1])
            for number in range(20)
        ),
        return_exceptions=True,
    )
    [winner] = [outcome for outcome in outcomes if not isinstance(outcome, PreconditionFailed)]
    assert winner == await read_item(database, created.id)
    assert winner.revision == 2


async def test_what_is_not_there_is_named(database):
    for attempt in (
        read_item(database, 4711),
        change_item(database, 4711, ItemPatch()),
        change_item(database, 4711, ItemPatch.model_validate({"name": "x"}), revisions=[1]),
        delete_item(database, 4711),
        delete_item(database, 4711, revisions=[1]),
    ):
        with pytest.raises(NotFound, match="4711"):
            await attempt


async def test_only_the_named_version_is_deleted(database):
    created = await create_item(database, KETTLE)
    with pytest.raises(PreconditionFailed, match='"1"'):
        await delete_item(database, created.id, revisions=[2, 3])
    await delete_item(database, created.id, revisions=[1])
    assert await count_items(database) == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "''"),
        ("name", "repeat('n', 201)"),
        ("description", "repeat('d', 10001)"),
        ("price", "-0.01"),
        ("price", "'NaN'"),
        ("tags", "array['']"),
        ("tags", "array[null]"),
        ("tags", "array[repeat('t', 51)]"),
        ("tags", "array_fill('t'::text, array[21])"),
        ("tags", "array[['a'],['b']]"),
    ],
)
async def test_the_table_itself_refuses_what_the_model_refuses(database, column, value):
    row = {"name": "'x'", "price": "1"} | {column: value}
    with pytest.raises(asyncpg.CheckViolationError, match=f"items_{column}"):
        await database.execute(
            f"insert into items ({', '.join(row)}) values ({', '.join(row.values())})"  # noqa: S608  # our own
        )


# Idempotency


async def test_twenty_concurrent_requests_with_one_key_create_one_item(database):
    creations = await asyncio.gather(*(create_once(database, "key", KETTLE) for _ in range(20)))
    assert await count_items(database) == 1
    assert len({creation.item for creation in creations}) == 1
    assert sorted(creation.replayed for creation in creations) == [False] + [True] * 19


async def test_a_retry_gets_the_first_answer_whatever_became_of_the_item(database):
    first = await create_once(database, "key", KETTLE)
    await change_item(database, first.item.id, ItemPatch.model_validate({"name": "other"}))
    assert await create_once(database, "key", KETTLE) == (first.item, True)
    await delete_item(database, first.item.id)
    assert await create_once(database, "key", KETTLE) == (first.item, True)


async def test_another_body_under_the_same_key_is_refused(database):
    await create_once(database, "key", KETTLE)
    with pytest.raises(Unprocessable, match="another body"):
        await create_once(database, "key", NewItem.model_validate(BODY))
    assert await count_items(database) == 1


async def test_a_creation_that_failed_leaves_its_key_free(database):
    # The model cannot make it; the table refuses it.
    broken = NewItem.model_construct(name="", price=Decimal(1), tags=[], description=None)
    with pytest.raises(asyncpg.CheckViolationError):
        await create_once(database, "key", broken)
    assert not (await create_once(database, "key", KETTLE)).replayed


async def test_a_key_is_known_until_it_is_pruned(database):
    first = await create_once(database, "key", KETTLE)
    await create_once(database, "young", KETTLE)
    await database.execute(
        "update idempotency_keys set created_at = created_at - interval '25 hours' where key = 'key'"
    )
    assert (await create_once(database, "key", KETTLE)).replayed
    assert await ItemRetention(database).prune() == Pruned(changes=0, keys=1)
    assert await database.fetch_value("select key from idempotency_keys") == "young"
    second = await create_once(database, "key", NewItem.model_validate(BODY))
    assert not second.replayed
    assert second.item.id != first.item.id


# HTTP


async def test_an_item_lives_its_life_over_http(client):
    async with client.post("/items", json=BODY) as answer:
        assert answer.status == 201
        location, tag, created = answer.headers["Location"], answer.headers["ETag"], await answer.json()
        assert "Idempotency-Replayed" not in answer.headers
    assert location == f"/items/{created['id']}"
    async with client.get(location) as answer:
        assert (answer.status, answer.headers["ETag"], await answer.json()) == (200, tag, created)
    async with client.get(location, headers={"If-None-Match": f"W/{tag}"}) as answer:
        assert (answer.status, answer.headers["ETag"], await answer.read()) == (304, tag, b"")
    async with client.patch(location, json={"price": "0.99"}, headers={"If-Match": tag}) as answer:
        assert (answer.status, (await answer.json())["price"]) == (200, "0.99")
        new_tag = answer.headers["ETag"]
    assert new_tag != tag
    async with client.patch(location, json={"price": "5"}, headers={"If-Match": tag}) as answer:
        assert answer.status == 412
        assert str(created["id"]) in (await answer.json())["title"]
    async with client.delete(location, headers={"If-Match": f'{tag}, W/{new_tag}, "x"'}) as answer:
        assert answer.status == 412
    async with client.delete(location, headers={"If-Match": f'"x" , {new_tag}'}) as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    async with client.get(location) as answer:
        assert answer.status == 404
        assert str(created["id"]) in (await answer.json())["title"]


async def test_a_retry_over_http_says_so(client, database):
    answers = []
    for _ in range(2):
        async with client.post("/items", json=BODY, headers={"Idempotency-Key": "k 1"}) as answer:
            headers = {name: answer.headers.get(name) for name in ("Location", "ETag")}
            answers.append((answer.status, headers, await answer.read()))
            replayed = answer.headers.get("Idempotency-Replayed")
    assert answers[0] == answers[1]
    assert replayed == "true"
    assert await count_items(database) == 1


async def test_what_was_answered_201_is_there_at_once(client, database):
    for _ in range(50):
        async with client.post("/items", json=BODY) as answer:
            item = await answer.json()
        assert (await read_item(database, item["id"])).revision == 1


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "POST"])
async def test_writes_need_the_token(client, method):
    path = "/items" if method == "POST" else "/items/1"
    async with client.request(method, path, json=BODY, headers={"Authorization": "Bearer no"}) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("GET", "/items?limit=0", None, {}),
        ("GET", "/items?limit=201", None, {}),
        ("GET", "/items?after=9223372036854775808", None, {}),
        ("GET", "/items?after=0", None, {}),
        ("GET", "/items/0", None, {}),
        ("GET", "/items/9223372036854775808", None, {}),
        ("GET", "/items/x", None, {}),
        ("DELETE", f"/items/{10**30}", None, {}),
        ("PATCH", "/items/-1", b"{}", {}),
        ("GET", "/items/1", None, {"If-Match": "1"}),
        ("GET", "/items/1", None, {"If-None-Match": '"'}),
        ("DELETE", "/items/1", None, {"If-Match": ""}),
        ("GET", "/items/changes", None, {"Last-Event-ID": "yesterday"}),
        ("POST", "/items", b'{"name":"x","price":12.5}', {}),
        ("POST", "/items", b'{"name":"x","price":"1","colour":"red"}', {}),
        ("POST", "/items", b'{"name":"\\u0000","price":"1"}', {}),
        ("POST", "/items", b'{"name":"\\ud800","price":"1"}', {}),
        ("POST", "/items", b'{"name":"x","price":"1","tags":["\\ud800"]}', {}),
        ("POST", "/items", b'{"name":"\xff","price":"1"}', {}),
        ("POST", "/items", b'{"name":', {}),
        ("POST", "/items", b'{"\\ud800":1,"name":"x","price":"1"}', {}),
        ("POST", "/items", b"[]", {}),
        ("POST", "/items", b"", {}),
        ("POST", "/items", b'{"name":"x","price":"1"}', {"Idempotency-Key": ""}),
        ("POST", "/items", b'{"name":"x","price":"1"}', {"Idempotency-Key": "k" * 256}),
        ("POST", "/items", b'{"name":"x","price":"1"}', {"Idempotency-Key": "\xe9"}),
        ("PATCH", "/items/1", b'{"name":null}', {}),
        ("PATCH", "/items/1", b'{"id":2}', {}),
        ("PATCH", "/items/1", b'{"description":"\\u0000"}', {}),
        ("PATCH", "/items/1", b"null", {}),
    ],
)
async def test_bad_input_is_the_callers_mistake(client, database, method, path, body, headers):
    await create_item(database, KETTLE)
    headers = {"Content-Type": "application/json"} | headers
    async with client.request(method, path, data=body, headers=headers) as answer:
        # 400 is what the framework answers to a body that cannot be decoded at all.
        assert answer.status == 422 or (answer.status == 400 and b"\xff" in (body or b""))
        assert answer.content_type == "application/problem+json"
        assert json.loads(await answer.read())["title"]
    assert await count_items(database) == 1
