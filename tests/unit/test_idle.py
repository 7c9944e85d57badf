"""What is noted of connections that are held idle."""

import asyncio
import time
from contextlib import contextmanager

from freeloop.database.idle import IdlePlaces
from freeloop.scope import Scope


@contextmanager
def held_connection(route):
    scope = Scope("r", route=route)
    scope.enter()
    with scope.borrow("connection", "main") as held:
        yield held, scope


async def test_what_is_borrowed_while_nothing_lies_unused_is_not_noted():
    with held_connection("/") as (held, scope):
        with scope.borrow("upstream", "a"):
            assert held.awaited is None
        held.rest()
        held.use()
        with scope.borrow("upstream", "a"):
            assert held.awaited is None


async def test_each_line_is_noted_once_for_a_rest():
    with held_connection("/") as (held, scope):
        held.rest()
        for _ in range(1000):
            with scope.borrow("upstream", "a"):
                pass
        with scope.borrow("thread", "b"):
            pass
        assert [lease.kind for lease in held.awaited.values()] == ["upstream", "thread"]


async def test_a_rest_is_settled_once():
    places = IdlePlaces("main")
    with held_connection("/") as (held, scope):
        held.rest()
        with scope.borrow("upstream", "a"):
            pass
        places.settle(held)
        places.settle(held)
        assert [found.times for found in places.found] == [1]
        held.rest()
        places.settle(held)
        assert [found.times for found in places.found] == [1]


async def test_the_longest_rest_is_kept():
    places = IdlePlaces("main")
    with held_connection("/") as (held, _):
        for seconds in (2, 5, 3):
            held.idle_since = time.monotonic() - seconds
            places.settle(held)
        (found,) = places.found
        assert (found.times, round(found.longest), found.awaited) == (3, 5, "")


async def test_places_are_bounded(caplog):
    places = IdlePlaces("main")

    async def hold(route):
        with held_connection(route) as (held, _):
            held.idle_since = time.monotonic() - 2
            places.settle(held)

    for number in range(150):
        await asyncio.create_task(hold(f"/{number}"))
    assert len(places.found) == len(caplog.records) == 101
    assert places.counts["(others)", ""] == 50
    assert sum(places.counts.values()) == 150
