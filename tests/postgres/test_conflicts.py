"""What the database refuses because of other rows is 409, also at COMMIT; what was answered 201 is there."""

import asyncio
from collections import Counter
from typing import Annotated

import aiohttp
import asyncpg
import pytest
from fastapi import Depends
from fastapi.responses import PlainTextResponse
from kit_app import kit_app, running, settings_of

from freeloop import Db
from freeloop.database import Transaction
from freeloop.service.app import create_app

DEFERRED = "create table seats (place int constraint one_each unique deferrable initially deferred)"


@pytest.fixture
def app(address):
    app, _ = kit_app(address)
    return app


@pytest.fixture
async def seats(app, database):
    """An app whose constraint is only looked at by COMMIT."""
    await database.execute(DEFERRED)

    @app.post("/seats/{place}", status_code=201)
    async def take(db: Db, place: int) -> str:
        async with db.transaction() as tx:
            await tx.execute("insert into seats values ($1)", place)
        return "taken"

    @app.post("/alone/{place}", status_code=201)
    async def take_by_one_statement(db: Db, place: int) -> str:
        await db.execute("insert into seats values ($1)", place)
        return "taken"

    async with running(app) as client:
        yield client


async def post(client, path, **options):
    async with client.post(path, **options) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


@pytest.mark.parametrize("path", ["/seats/7", "/alone/7"])
async def test_a_constraint_that_fails_at_commit_is_a_conflict(seats, path, database):
    assert (await post(seats, path))[0] == 201
    status, problem, headers = await post(seats, path, headers={"X-Request-ID": "the-second"})
    assert (status, headers["Content-Type"]) == (409, "application/problem+json")
    assert problem == {
        "type": "about:blank",
        "title": "It conflicts with what is stored in seats",
        "status": 409,
        "detail": (
            "The change was not made: there is a row with the same values already (constraint one_each)."
        ),
        "request_id": "the-second",
    }
    assert await database.fetch_value("select count(*) from seats") == 1


async def test_of_many_at_once_one_is_created_and_found_at_once(seats, database):
    outcomes = Counter()

    async def take(place):
        status, *_ = await post(seats, f"/seats/{place}")
        outcomes[status] += 1
        if status == 201:
            # By another connection, as soon as the answer is there.
            assert await database.fetch_value("select count(*) from seats where place = $1", place) == 1

    await asyncio.gather(*(take(place) for place in range(10) for _ in range(5)))
    assert outcomes == {201: 10, 409: 40}


CONSTRAINTS = """
create table rooms (id int primary key, beds int not null check (beds > 0));
create table stays (room int references rooms, during int4range, exclude using gist (during with &&));
insert into rooms values (1, 2); insert into stays values (1, '[1,5)');
"""


@pytest.mark.parametrize(
    ("sql", "status", "said"),
    [
        ("insert into rooms values (1, 2)", 409, "the same values already (constraint rooms_pkey)"),
        ("insert into stays values (9, '[7,8)')", 409, "it refers to is not there"),
        ("delete from rooms where id = 1", 409, "is still referred to (constraint stays_room_fkey)"),
        ("insert into stays values (1, '[3,9)')", 409, "a row that is there already excludes it"),
        ("insert into rooms values (2, 0)", 500, "Internal Server Error"),
        ("insert into rooms values (2, null)", 500, "Internal Server Error"),
    ],
)
async def test_which_constraint_is_what(app, database, caplog, sql, status, said):
    await database.execute(CONSTRAINTS)

    @app.post("/")
    async def change(db: Db) -> None:
        await db.execute(sql)

    async with running(app) as client, client.post("/") as answer:
        assert answer.status == status
        assert said in await answer.text()
    # A conflict is no fault of the app's, the rest is.
    assert ("unhandled error" in caplog.text) == (status == 500)


async def test_values_of_rows_are_not_told(app, database):
    await database.execute("create table people (email text unique)")
    await database.execute("insert into people values ('someone@example.org')")

    @app.post("/")
    async def change(db: Db) -> None:
        await db.execute("insert into people values ('someone@example.org')")

    async with running(app) as client:
        status, problem, _ = await post(client, "/")
    assert status == 409
    assert "someone" not in str(problem)


@pytest.mark.parametrize("kind", [asyncpg.UniqueViolationError, asyncpg.IntegrityConstraintViolationError])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_the_app_answers_itself_stays(address, database, kind, when):
    async def answer(request, error):
        return PlainTextResponse("mine", 418)

    given = {"exception_handlers": {kind: answer}} if when == "before" else {}
    app, _ = kit_app(address, **given)
    if when == "after":
        app.add_exception_handler(kind, answer)
    await database.execute("create table seats (place int unique); insert into seats values (1)")

    @app.post("/")
    async def change(db: Db) -> None:
        await db.execute("insert into seats values (1)")

    async with running(app) as client, client.post("/") as got:
        assert (got.status, await got.text()) == (418, "mine")


async def test_a_transaction_of_a_dependency_ends_before_the_answer(app, database):
    """With scope="function", as docs/database.md says; FastAPI's default would be after it."""
    await database.execute(DEFERRED)

    async def begin(db: Db):
        async with db.transaction() as tx:
            yield tx

    @app.post("/", status_code=201)
    async def take(tx: Annotated[Transaction, Depends(begin, scope="function")]) -> None:
        await tx.execute("insert into seats values (1)")

    async with running(app) as client:
        assert [(await post(client, "/"))[0] for _ in range(2)] == [201, 409]


async def test_the_service_answers_a_conflict_at_commit_too(address, database):
    app = await asyncio.to_thread(create_app, settings_of(address))
    async with running(app) as client:
        await database.execute(
            "alter table items add constraint one_name unique (name) deferrable initially deferred"
        )
        item = {"name": "Lamp", "price": "12.50"}
        status, created, headers = await post(client, "/items", json=item)
        assert status == 201
        async with client.get(headers["Location"]) as found:
            assert (await found.json())["id"] == created["id"]
        for extra in ({}, {"Idempotency-Key": "again"}):
            status, problem, _ = await post(client, "/items", json=item, headers=extra)
            assert (status, problem["title"]) == (409, "It conflicts with what is stored in items")
        async with client.get("/items", timeout=aiohttp.ClientTimeout(total=5)) as page:
            assert len((await page.json())["items"]) == 1


async def test_transactions_that_collide_may_come_again(app, database):
    await database.execute("create table stock (id int primary key, n int)")
    await database.execute("insert into stock values (1, 0), (2, 0)")
    both = asyncio.Barrier(2)

    @app.post("/move/{first}/{second}")
    async def move(db: Db, first: int, second: int) -> str:
        async with db.transaction() as tx:
            await tx.execute("update stock set n = n + 1 where id = $1", first)
            await both.wait()
            await tx.execute("update stock set n = n + 1 where id = $1", second)
        return "moved"

    async with running(app) as client:
        answers = await asyncio.gather(post(client, "/move/1/2"), post(client, "/move/2/1"))
    assert sorted(status for status, *_ in answers) == [200, 503]
    _, problem, headers = next(answer for answer in answers if answer[0] == 503)
    assert headers["Retry-After"] == "1"
    assert problem["title"] == "It collided with another change at the same time"
    assert sorted(row["n"] for row in await database.fetch("select n from stock")) == [1, 1]
