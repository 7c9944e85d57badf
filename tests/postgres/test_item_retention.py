"""What is pruned from the change log, and what a reader learns who comes back too late."""

import json
from contextlib import aclosing

from items_service import NEVER, connect, insert, log, settled_log, take, until

from freeloop.service.items.changelog import ORIGIN, Cursor
from freeloop.service.items.feed import ChangeFeed
from freeloop.service.items.retention import ItemRetention, Pruned


async def age(database, *cursors):
    await database.execute_many(
        "update item_changes set at = at - interval '25 hours' where stamp = $1 and id = $2", cursors
    )


async def test_resuming_from_before_the_horizon_says_so(database):
    await insert(database, *"abcde")
    everything = await settled_log(database)
    await age(database, *everything[:3])
    assert await ItemRetention(database, batch=2).prune() == Pruned(changes=3, keys=0)
    assert await settled_log(database) == everything[3:]
    async with ChangeFeed(database, poll=NEVER) as feed:
        async with aclosing(feed.subscribe(everything[1])) as stream:
            [reset] = await take(stream, 1)
            assert (reset.kind, reset.cursor) == ("reset", everything[-1])
            assert "no longer kept" in json.loads(reset.data)["reason"]
            [item] = await insert(database, "f")
            [change] = await take(stream, 1)
            assert change.item_id == item
        # Nothing behind the horizon itself was pruned.
        async with aclosing(feed.subscribe(everything[2])) as stream:
            assert [change.cursor for change in await take(stream, 3)] == (await settled_log(database))


async def test_an_emptied_log_still_knows_where_it_ended(database):
    await insert(database, *"ab")
    everything = await settled_log(database)
    await age(database, *everything)
    assert (await ItemRetention(database).prune()).changes == 2
    async with ChangeFeed(database, poll=NEVER) as feed:
        assert feed.head == everything[-1]
        async with aclosing(feed.subscribe(everything[-1])) as stream:
            await insert(database, "c")
            [change] = await take(stream, 1)
            assert change.kind == "insert"


async def test_a_running_feed_that_was_overtaken_by_pruning_says_so(database):
    async with ChangeFeed(database, poll=NEVER, tail=1) as feed, aclosing(feed.subscribe(ORIGIN)) as stream:
        await insert(database, "a")
        await take(stream, 1)
        await insert(database, *"bcdefgh")
        everything = await settled_log(database)

        async def has_read():
            return feed.head == everything[-1]

        await until(has_read)
        await age(database, *everything[:4])
        await ItemRetention(database).prune()
        [reset] = await take(stream, 1)
        assert (reset.kind, reset.cursor) == ("reset", everything[-1])


async def test_only_the_beginning_of_the_log_is_pruned(database):
    await insert(database, *"abc")
    everything = await settled_log(database)
    await age(database, everything[0], everything[2])
    assert (await ItemRetention(database).prune()).changes == 1
    assert await settled_log(database) == everything[1:]


async def test_what_nobody_could_read_yet_is_not_pruned(database, address):
    async with connect(address) as foreign, foreign.transaction():
        await foreign.fetchval("select pg_current_xact_id()")
        await insert(database, "a")
        await age(database, *await log(database))
        assert (await ItemRetention(database).prune()).changes == 0
    await settled_log(database)
    assert (await ItemRetention(database).prune()).changes == 1


async def test_two_processes_do_not_prune_at_once(database, address):
    await insert(database, "a")
    await age(database, *await settled_log(database))
    async with connect(address) as other, other.transaction():
        lock = await other.fetchval("select pg_try_advisory_xact_lock($1)", 0x6974656D73)
        assert lock
        assert (await ItemRetention(database).prune()).changes == 0


async def test_retention_prunes_while_it_is_entered(database):
    await insert(database, "a")
    await age(database, *await settled_log(database))
    async with ItemRetention(database, every=0.05):

        async def pruned():
            return not await settled_log(database)

        await until(pruned)
        await insert(database, "b")
        await age(database, *await settled_log(database))
        await until(pruned)


async def test_a_position_that_is_not_in_this_log_says_so(database):
    await insert(database, "a")
    [position] = await settled_log(database)
    async with ChangeFeed(database, poll=NEVER) as feed:
        async with aclosing(feed.subscribe(Cursor(position.stamp + 1_000_000, 1))) as stream:
            [reset] = await take(stream, 1)
        assert (reset.kind, reset.cursor) == ("reset", position)
