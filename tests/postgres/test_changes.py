"""The change feed: every committed change once and in order, whatever is cut, late or slow."""

import asyncio
import contextlib
import json
import random
from contextlib import aclosing

import pytest
from items_service import INSERT, NEVER, SOON, connect, insert, log, serve_items, settled_log, take, until

from freeloop.errors import Unavailable
from freeloop.service.items.changelog import ORIGIN, READ_LOG, read_log
from freeloop.service.items.feed import ChangeFeed


async def cut_listener(database):
    await database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and query ilike 'listen%'"
    )


# What arrives


async def test_each_kind_of_change_arrives_as_it_was(database):
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        [item] = await insert(database, "a")
        await database.execute("update items set name = 'b' where id = $1", item)
        await database.execute("delete from items")
        changes = await take(stream, 3)
    assert [change.kind for change in changes] == ["insert", "update", "delete"]
    assert [change.cursor for change in changes] == await settled_log(database)
    data = [json.loads(change.data) for change in changes]
    assert [entry["id"] for entry in data] == [item] * 3
    assert [entry["item"] and entry["item"]["name"] for entry in data] == ["a", "b", None]
    assert data[0]["at"] < data[1]["at"] < data[2]["at"]


async def test_a_truncated_table_is_deleted_item_by_item(database):
    ids = await insert(database, "a", "b")
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe(feed.head)) as stream:
        await database.execute("truncate items")
        assert {(change.kind, change.item_id) for change in await take(stream, 2)} == {
            ("delete", item) for item in ids
        }


async def test_without_a_position_the_stream_begins_now(database):
    await insert(database, "before")
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe()) as stream:
        following = asyncio.ensure_future(take(stream, 3))
        ids = []
        while not following.done():
            ids += await insert(database, "since")
        arrived = [change.item_id for change in await following]
    start = ids.index(arrived[0])
    assert arrived == ids[start : start + 3]


async def test_what_is_rolled_back_never_arrives(database):
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        with contextlib.suppress(ZeroDivisionError):
            async with database.transaction() as transaction:
                await insert(transaction, "never")
                raise ZeroDivisionError
        [item] = await insert(database, "stays")
        [change] = await take(stream, 1)
        assert change.item_id == item


# Resuming


async def test_every_position_resumes_with_exactly_the_rest(database):
    ids = await insert(database, *"abcdefgh")
    everything = await settled_log(database)
    async with ChangeFeed(database, poll=NEVER, tail=4) as feed:
        for seen, cursor in enumerate([ORIGIN, *everything[:-1]]):
            async with aclosing(feed.subscribe(cursor)) as stream:
                rest = await take(stream, len(everything) - seen)
            assert [change.cursor for change in rest] == everything[seen:]
            assert [change.item_id for change in rest] == ids[seen:]


async def test_a_stream_resumes_across_a_restart(database):
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        await insert(database, "a", "b")
        [first, _] = await take(stream, 2)
    await insert(database, "c")
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe(first.cursor)) as stream:
        await insert(database, "d")
        rest = await take(stream, 3)
    assert [change.cursor for change in rest] == (await settled_log(database))[1:]


async def test_a_position_from_a_process_that_is_ahead_is_not_lost(database):
    """Two processes follow one log; a client moves from one to the other."""
    async with ChangeFeed(database, poll=NEVER) as behind:
        await behind.close()  # It stays where it is, as one does that was suspended.
        fresh = ChangeFeed(database, poll=0.2)
        fresh._rewind(await read_log(database, ORIGIN, limit=0))
        await insert(database, "a", "b")
        ahead = await settled_log(database)
        async with aclosing(fresh.subscribe(ahead[-1])) as stream:
            following = asyncio.ensure_future(take(stream, 1))
            [item] = await insert(database, "c")
            [change] = await following
        assert (change.kind, change.item_id) == ("insert", item)
        await fresh.close()


# The order of commits


async def test_a_lower_id_that_is_committed_later_is_not_missed(database, address):
    async with (
        connect(address) as early,
        ChangeFeed(database, poll=NEVER) as feed,
        aclosing(feed.subscribe(ORIGIN)) as stream,
    ):
        following = asyncio.ensure_future(take(stream, 3))
        async with early.transaction():
            first = await early.fetchval(INSERT, "drew the lowest id, commits last")
            [second] = await insert(database, "commits first")
            # The reader has been told and has looked; the committed row has to wait.
            page = await read_log(database, ORIGIN, limit=10)
            assert (page.changes, page.pending) == ([], True)
            # Behind the other transaction's row by id, before it by transaction.
            third = await early.fetchval(INSERT, "drew the highest id")
            assert not following.done()
        changes = await following
    assert [change.item_id for change in changes] == [first, third, second]
    assert [change.cursor for change in changes] == await settled_log(database)
    assert changes[1].cursor.id > changes[2].cursor.id


async def test_changes_of_one_item_keep_their_order_whoever_got_the_lower_transaction_id(database, address):
    async with (
        connect(address) as early,
        ChangeFeed(database, poll=NEVER) as feed,
        aclosing(feed.subscribe(ORIGIN)) as stream,
    ):
        async with early.transaction():
            mine = await early.fetchval("select pg_current_xact_id()")
            [item] = await insert(database, "a")
            [position] = await log(database)
            assert mine < position.stamp
            await early.execute("update items set name = 'b' where id = $1", item)
        await database.execute("update items set name = 'c' where id = $1", item)
        async with early.transaction():
            await early.fetchval("select pg_current_xact_id()")
            await database.execute("update items set name = 'd' where id = $1", item)
            await early.execute("delete from items where id = $1", item)
        changes = await take(stream, 5)
    assert [change.kind for change in changes] == ["insert", "update", "update", "update", "delete"]
    names = [(json.loads(change.data)["item"] or {}).get("name") for change in changes]
    assert names == ["a", "b", "c", "d", None]
    assert [change.cursor for change in changes] == await log(database)


async def test_a_foreign_transaction_holds_back_and_its_end_needs_no_announcement(database, address):
    async with (
        connect(address) as foreign,
        connect(address) as observer,
        ChangeFeed(database, poll=NEVER) as feed,
        aclosing(feed.subscribe(ORIGIN)) as stream,
    ):
        ending = foreign.transaction()
        await ending.start()
        await foreign.execute("create temporary table unrelated ()")
        [item] = await insert(database, "held back")
        written = await database.fetch_value("select clock_timestamp()")
        following = asyncio.ensure_future(take(stream, 1))

        # The reader has looked since, and has seen that there is something it may not read yet.
        async def has_looked():
            return await observer.fetchval(
                "select count(*) > 0 from pg_stat_activity where query like '%item_changes_horizon%'"
                " and datname = current_database() and pid <> pg_backend_pid()"
                " and state = 'idle' and query_start > $1",
                written,
            )

        await until(has_looked)
        assert not following.done()
        await ending.rollback()
        [change] = await following
        assert change.item_id == item


# What is lost on the way


async def test_a_cut_listener_reads_what_it_missed(database):
    async with ChangeFeed(database, poll=NEVER) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        await insert(database, "a")
        await take(stream, 1)
        for name in "bcd":
            await cut_listener(database)
            [item] = await insert(database, name)
            [change] = await take(stream, 1)
            assert change.item_id == item


async def test_a_notification_that_never_comes_is_made_up_for(database):
    async with ChangeFeed(database, poll=0.2) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        await insert(database, "a")
        await take(stream, 1)
        await database.execute("alter table item_changes disable trigger item_changes_notify")
        [item] = await insert(database, "silent")
        [change] = await take(stream, 1)
        assert change.item_id == item


CHANGES = [
    "insert into items (name, price) select 'w', 0 from generate_series(1, 2)",
    (
        "update items set price = price + 1"
        " where id in (select id from items order by random() limit 1 for update skip locked)"
    ),
    "delete from items where id in (select id from items order by random() limit 1 for update skip locked)",
]


async def write_at_random(address, chance, turns):
    async with connect(address) as connection:
        for _ in range(turns):
            transaction = connection.transaction()
            await transaction.start()
            for _ in range(chance.randint(1, 3)):
                await connection.execute(chance.choice(CHANGES))
                await asyncio.sleep(chance.uniform(0, 0.004))
            await (transaction.rollback() if chance.random() < 0.2 else transaction.commit())


async def cut_again_and_again(address):
    async with connect(address) as connection:
        while True:
            await asyncio.sleep(0.05)
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and (query ilike 'listen%' or query like '%item_changes_horizon%')"
            )


async def follow(feed, seen, leaves):
    while True:
        async with aclosing(feed.subscribe(seen[-1].cursor if seen else ORIGIN)) as stream:
            async for change in stream:
                seen.append(change)
                if leaves():
                    break


def replay(changes):
    """Return the items that somebody holds who has followed from the beginning."""
    items = {}
    for change in changes:
        item = json.loads(change.data)["item"]
        if change.kind == "insert":
            assert change.item_id not in items
        else:
            before = items.pop(change.item_id)
            assert item is None or item["updated_at"] >= before["updated_at"]
        if item is not None:
            items[change.item_id] = item
    return items


async def test_each_committed_change_arrives_once_under_cuts_and_load(database, address):
    """Writers race, roll back and are slow; connections are cut; one follower also reconnects itself."""
    chance = random.Random(20_261_124)  # noqa: S311  # repeatable, not secret
    steady, restless = [], []
    async with ChangeFeed(database, poll=0.5, tail=16) as feed:
        followers = [
            asyncio.ensure_future(follow(feed, steady, lambda: False)),
            asyncio.ensure_future(follow(feed, restless, lambda: chance.random() < 0.1)),
        ]
        cutting = asyncio.ensure_future(cut_again_and_again(address))
        await asyncio.gather(*(write_at_random(address, chance, turns=30) for _ in range(6)))
        cutting.cancel()
        await asyncio.gather(cutting, return_exceptions=True)

        async def complete():
            assert not any(follower.done() for follower in followers)
            # A connection of its own: the last cut may have hit those of the pool.
            async with connect(address) as connection:
                written = await connection.fetchval("select count(*) from item_changes")
            return written > 100 and min(len(steady), len(restless)) >= written

        await until(complete)
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    async with connect(address) as connection:
        expected = await log(connection)
        table = await connection.fetch("select id, document_of(items)::text from items")
    for seen in (steady, restless):
        assert [change.cursor for change in seen] == expected
        assert replay(seen) == {row[0]: json.loads(row[1]) for row in table}


async def test_the_log_is_read_along_its_index(database):
    await database.execute("insert into items (name, price) select 'n', 1 from generate_series(1, 5000)")
    await database.execute("analyze item_changes")
    async with database.transaction() as transaction:
        await transaction.execute(f"prepare look (xid8, bigint, bigint) as {READ_LOG}")
        for position in ("0", "900000000000"):
            plan = await transaction.fetch(f"explain execute look ('{position}', 0, 200)")
            text = "\n".join(row[0] for row in plan)
            assert "Seq Scan on item_changes " not in text + " "


# Who is slow, and how many


async def test_a_slow_follower_is_behind_and_misses_nothing(database):
    async with ChangeFeed(database, poll=NEVER, tail=8) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        await insert(database, "first")
        changes = await take(stream, 1)
        await database.execute("insert into items (name, price) select 'n', 1 from generate_series(1, 1000)")
        everything = await settled_log(database)

        async def has_read():
            return feed.head == everything[-1]

        await until(has_read)
        assert len(feed._tail) <= 10
        changes += await take(stream, 1000)
    assert [change.cursor for change in changes] == everything


async def test_followers_that_wait_hold_no_connection(database):
    async with ChangeFeed(database, poll=NEVER) as feed:
        taking = [asyncio.ensure_future(take(feed.subscribe(ORIGIN), 1)) for _ in range(50)]

        async def waiting():
            return feed.followers == 50 and database.in_use == 0

        await until(waiting)
        await insert(database, "a")
        assert {change.cursor for [change] in await asyncio.gather(*taking)} == set(
            await settled_log(database)
        )


async def test_more_followers_than_allowed_are_refused(database):
    async with ChangeFeed(database, followers=1) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        feed.admit()
        await insert(database, "a")
        await take(stream, 1)
        with pytest.raises(Unavailable, match="1 streams"):
            feed.admit()
    feed.admit()


async def test_stopping_ends_every_stream_at_once(database, address):
    await insert(database, "a")
    [position] = await settled_log(database)
    async with connect(address) as blocker, ChangeFeed(database, poll=NEVER) as feed:
        waiting = asyncio.ensure_future(drain(feed.subscribe(position)))
        async with blocker.transaction():
            await blocker.execute("lock table item_changes in access exclusive mode")
            reading = asyncio.ensure_future(drain(feed.subscribe(ORIGIN)))

            async def blocked():
                waits = await blocker.fetchval(
                    "select count(*) from pg_locks where relation = 'item_changes'::regclass and not granted"
                )
                return waits > 0 and feed.followers == 2

            await until(blocked)
            async with asyncio.timeout(2):
                await feed.close()
                assert await waiting == []
                assert await reading == []
    assert feed.followers == 0


async def drain(stream):
    return [change async for change in stream]


# HTTP


async def read_event(response):
    """Return the fields of the next event; comments under the empty name."""
    event = {}
    async with asyncio.timeout(SOON):
        while line := (await response.content.readline()).decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            event[name] = value
    return event


async def test_a_client_that_loses_the_connection_misses_nothing(database):
    async with serve_items(database, poll=NEVER) as (client, _):
        await insert(database, "before")
        async with client.get("/items/changes") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            opening = await read_event(response)
            # An id without data: no event for the reader, but a place to resume from.
            assert opening["id"] == str((await settled_log(database))[-1])
            assert "data" not in opening
        async with client.post("/items", json={"name": "while away\r\n\u2028", "price": "1"}) as answer:
            created = await answer.json()
        resume = {"Last-Event-ID": opening["id"]}
        async with client.get("/items/changes", headers=resume) as response:
            assert (await read_event(response))["id"] == opening["id"]
            event = await read_event(response)
            assert event["event"] == "insert"
            data = json.loads(event["data"])
            assert (data["id"], data["item"]) == (created["id"], created)
            async with client.delete(f"/items/{created['id']}") as answer:
                assert answer.status == 204
            event = await read_event(response)
            assert event["event"] == "delete"
            assert json.loads(event["data"])["item"] is None
            assert event["id"] == str((await settled_log(database))[-1])


async def test_a_stream_ends_when_the_feed_stops(database):
    async with (
        serve_items(database, poll=NEVER) as (client, changes),
        client.get("/items/changes") as response,
    ):
        await read_event(response)
        changes.stop()
        async with asyncio.timeout(5):
            assert await response.content.read() == b""


async def test_a_client_that_left_is_no_longer_counted(database):
    async with serve_items(database, poll=NEVER) as (client, changes):
        for _ in range(5):
            async with client.get("/items/changes") as response:
                await read_event(response)

        async def gone():
            return changes.followers == 0

        await until(gone)
