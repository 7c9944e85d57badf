"""What is noted of connections that are held idle."""

import asyncio
import time

from freeloop.database.idle import IdlePlaces
from freeloop.scope import Scope


def leases(route):
    scope = Scope("r", route=route)
    scope.enter()
    return scope.borrow("connection", "main"), scope


async def test_what_is_borrowed_while_nothing_lies_unused_is_not_noted():
    held, scope = leases("/")
    with scope.borrow("upstream", "a"):
        assert held.awaited is None
    held.rest()
    held.use()
    with scope.borrow("upstream", "a"):
        assert held.awaited is None


async def test_each_line_is_noted_once_for_a_rest():
    held, scope = leases("/")
    held.rest()
    for _ in range(1000):
        with scope.borrow("upstream", "a"):
            pass
    with scope.borrow("thread", "b"):
        pass
    assert [lease.kind for lease in held.awaited.values()] == ["upstream", "thread"]


async def test_a_rest_is_settled_once():
    places = IdlePlaces("main")
    held, scope = leases("/")
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
    held, _ = leases("/")
    for seconds in (2, 5, 3):
        held.idle_since = time.monotonic() - seconds
        places.settle(held)
    (found,) = places.found
    assert (found.times, round(found.longest), found.awaited) == (3, 5, "")


async def test_places_are_bounded(caplog):
    places = IdlePlaces("main")

    async def hold(route):
        held, _ = leases(route)
        held.idle_since = time.monotonic() - 2
        places.settle(held)

    for number in range(150):
        await asyncio.create_task(hold(f"/{number}"))
    assert len(places.found) == len(caplog.records) == 101
    assert places.counts["(others)", ""] == 50
    assert sum(places.counts.values()) == 150
