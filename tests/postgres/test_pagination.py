"""Pages over items that come and go: what is there all the time is on exactly one page."""

import json
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from items_service import serve_items

from freeloop.service.items.store import list_items

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(1, 5)),
        st.tuples(st.just("delete"), st.integers(0, 100)),
        st.tuples(st.just("update"), st.integers(0, 100)),
    ),
    max_size=4,
)


async def insert(database, number):
    rows = await database.fetch(
        "insert into items (name, price) select 'n', n from generate_series(1, $1::int) as n returning id",
        number,
    )
    return [row[0] for row in rows]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the database is emptied by each example
@given(first=st.integers(0, 25), limit=st.integers(1, 7), between=st.lists(STEPS, max_size=12))
async def test_a_stable_item_is_seen_exactly_once(database, first, limit, between):
    await database.execute("delete from items")
    alive = await insert(database, first)
    stable, seen, after = set(alive), [], 0
    for turn in count():
        page = json.loads(await list_items(database, limit=limit, after=after))
        ids = [item["id"] for item in page["items"]]
        assert len(ids) <= limit
        seen += ids
        if page["next"] is None:
            break
        assert page["next"] == ids[-1] > after
        after = page["next"]
        for action, argument in between[turn] if turn < len(between) else []:
            if action == "insert":
                alive += await insert(database, argument)
            elif alive:
                chosen = alive[argument % len(alive)]
                if action == "delete":
                    alive.remove(chosen)
                    stable.discard(chosen)
                    await database.execute("delete from items where id = $1", chosen)
                else:
                    await database.execute("update items set price = price + 1 where id = $1", chosen)
    assert seen == sorted(set(seen))
    assert stable <= set(seen)


@pytest.mark.parametrize(("there", "pages"), [(0, 1), (1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
async def test_the_last_page_is_never_an_empty_one(database, there, pages):
    await insert(database, there)
    after, turns = 0, 0
    while after is not None:
        page = json.loads(await list_items(database, limit=3, after=after))
        assert page["items"] or there == 0
        after, turns = page["next"], turns + 1
    assert turns == pages


async def test_pages_over_http(database):
    ids = await insert(database, 120)
    async with serve_items(database) as (client, _):
        async with client.get("/items") as answer:
            page = await answer.json()
            assert answer.content_type == "application/json"
        assert [item["id"] for item in page["items"]] == ids[:50]
        assert page["next"] == ids[49]
        async with client.get("/items", params={"after": page["next"], "limit": 200}) as answer:
            page = await answer.json()
        assert [item["id"] for item in page["items"]] == ids[50:]
        assert page["next"] is None
        async with client.get("/items", params={"after": 2**63 - 1}) as answer:
            assert await answer.json() == {"items": [], "next": None}


async def test_a_page_is_read_along_the_index(database):
    await insert(database, 5_000)
    await database.execute("analyze items")
    plan = await database.fetch(
        "explain select id, document_of(items)::text from items where id > 100 order by id limit 51"
    )
    text = "\n".join(row[0] for row in plan)
    assert "Index Scan using items_pkey" in text
    assert "Sort" not in text
