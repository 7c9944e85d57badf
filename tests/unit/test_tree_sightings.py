"""Since when tasks wait: what is remembered, and what is forgotten."""

import asyncio
import gc

import pytest

from freeloop.testing import eventually
from freeloop.tree import Tree, look
from freeloop.tree.look import Slices
from freeloop.tree.sightings import Sightings
from tree_looks import look as take
from tree_looks import running, settled


def sweep(sightings, tasks, now):
    assert len(list(sightings.sweep(tasks, now))) == len(tasks)


async def test_a_wait_is_known_since_it_was_seen_first_and_another_one_is_new():
    sightings = Sightings()
    first, second = asyncio.Event(), asyncio.Event()

    async def twice():
        await first.wait()
        await second.wait()

    async with running(twice=twice()) as (task,):
        sweep(sightings, [task], 10.0)
        sweep(sightings, [task], 15.0)
        assert sightings.note_wait(task._fut_waiter, 20.0) == 10.0
        first.set()
        await settled()
        assert sightings.note_wait(task._fut_waiter, 30.0) == 30.0


async def test_what_has_ended_is_forgotten():
    sightings = Sightings()
    async with running(a=asyncio.sleep(60), b=asyncio.sleep(60)) as tasks:
        sweep(sightings, tasks, 1.0)
        assert len(sightings) == 2
    sweep(sightings, tasks, 2.0)
    assert len(sightings) == 0


async def test_it_keeps_no_future_alive_and_is_not_misled_by_one_in_the_same_place():
    sightings = Sightings()
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    sightings.note_wait(future, 1.0)
    place = id(future)
    del future
    gc.collect()
    others = [loop.create_future() for _ in range(1000)]
    again = [other for other in others if id(other) == place]
    assert all(sightings.note_wait(other, 2.0) == 2.0 for other in again or others)


async def test_turns_in_a_row_are_counted_until_a_task_does_something_else():
    sightings = Sightings()
    async with running(a=asyncio.sleep(60)) as (task,):
        assert [sightings.note_yield(task) for _ in range(3)] == [1, 2, 3]
        sightings.note_work(task)
        assert sightings.note_yield(task) == 1


async def test_an_open_tree_sees_waits_before_anybody_asks(monkeypatch):
    monkeypatch.setattr(look, "_SWEEP", 0.01)
    event = asyncio.Event()
    with Tree() as tree:
        async with running(waiter=event.wait()):
            await eventually(lambda: len(tree._sightings) >= 1)
            (before,) = [seen for _, seen in tree._sightings._waits.values()][:1]
            await eventually(lambda: asyncio.get_running_loop().time() > before + 0.2)
            seen = await take(tree)
    assert seen["waiter"].wait.seconds >= 0.1


async def test_a_closed_tree_looks_no_more_also_where_it_was_just_looking():
    with Tree() as tree:
        pass
    assert tree._timer.cancelled()
    tree._rest()
    assert tree._timer.cancelled()


async def test_other_work_comes_in_between_slices():
    between = []
    loop = asyncio.get_running_loop()

    def steps():
        for number in range(20):
            loop.call_soon(between.append, number)
            end = loop.time() + 0.003
            while loop.time() < end:
                pass
            yield

    assert await asyncio.to_thread(Slices(loop, steps()).run, 5)
    await eventually(lambda: len(between) == 20)


async def test_what_a_step_raises_comes_to_who_asked_and_the_loop_goes_on():
    def steps():
        yield
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.to_thread(Slices(asyncio.get_running_loop(), steps()).run, 5)


async def test_the_collector_is_on_again_after_a_look_and_off_where_it_was_off():
    tree = Tree()
    await take(tree)
    assert gc.isenabled()
    gc.disable()
    try:
        await take(tree)
        assert not gc.isenabled()
    finally:
        gc.enable()
