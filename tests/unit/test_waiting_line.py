"""A waiting line: turns go out in order, and none is lost, whoever leaves in whichever turn of the loop."""

import asyncio
import gc
import random
import weakref

import pytest

from freeloop.waiting_line import WaitingLine

WITHIN = 10.0


@pytest.fixture
def uncollected():
    """Leave to the garbage collector whatever is left to it."""
    gc.disable()
    yield
    gc.enable()


async def arrive(line, seconds=None):
    """Return a task that waits in the line already."""
    task = asyncio.create_task(line.wait(seconds))
    await asyncio.sleep(0)
    return task


async def test_a_turn_goes_to_who_has_waited_longest_with_what_is_handed_over():
    line = WaitingLine(pytest.fail)
    first, second = await arrive(line), await arrive(line)
    assert line.waiting == 2
    assert line.call_next("a")
    assert line.call_next("b")
    assert not line.call_next("c")
    assert await first == "a"
    assert await second == "b"
    assert line.waiting == 0


async def test_who_leaves_in_the_middle_is_passed_over():
    left = []
    line = WaitingLine(pytest.fail, lambda: left.append(line.waiting))
    first, second, third = [await arrive(line) for _ in range(3)]
    second.cancel()
    await asyncio.wait([second])
    assert left == [2]
    assert line.call_next("a")
    assert line.call_next("b")
    assert [await first, await third] == ["a", "b"]


async def test_those_who_leave_are_forgotten_at_once_also_behind_others(uncollected):
    line = WaitingLine(pytest.fail)
    first, *others = [await arrive(line) for _ in range(3)]
    waiters = [weakref.ref(turn) for turn in list(line._turns)[1:]]
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    assert line.waiting == 1
    others.clear()
    del task
    assert [waiter() for waiter in waiters] == [None] * 2
    assert line.call_next("a")
    assert await first == "a"


async def test_a_vain_wait_leaves_nothing_to_the_garbage_collector(uncollected):
    line = WaitingLine(pytest.fail)
    task = await arrive(line, 0.01)
    turn = weakref.ref(next(iter(line._turns)))
    await asyncio.wait([task])
    assert isinstance(task.exception(), TimeoutError)
    del task
    assert turn() is None


async def test_a_turn_that_comes_too_late_is_the_next_ones():
    line = WaitingLine(pytest.fail)
    late = await arrive(line, 0.01)
    patient = await arrive(line)
    with pytest.raises(TimeoutError):
        await late
    assert line.waiting == 1
    assert line.call_next("a")
    assert await patient == "a"
    assert not line.call_next("b")


async def test_a_turn_that_comes_as_its_waiter_is_cancelled_is_given_back():
    back = []
    line = WaitingLine(back.append)
    task = await arrive(line)
    assert line.call_next("a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert back == ["a"]


async def test_a_line_that_closes_fails_all_who_wait_each_with_an_error_of_its_own():
    line = WaitingLine(pytest.fail)
    first, second, cancelled = [await arrive(line) for _ in range(3)]
    cancelled.cancel()
    line.close(lambda: ValueError("closed"))
    errors = await asyncio.gather(first, second, return_exceptions=True)
    assert [str(error) for error in errors] == ["closed", "closed"]
    assert errors[0] is not errors[1]
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert line.waiting == 0


@pytest.mark.parametrize("seed", range(20))
async def test_at_random_moments_no_turn_is_lost_and_the_count_is_right(seed):
    chance = random.Random(seed)  # noqa: S311 - a seed, no secret
    free, left = ["x", "y", "z"], []

    def hand_over(turn):
        if not line.call_next(turn):
            free.append(turn)

    line = WaitingLine(hand_over, lambda: left.append(None))

    async def use():
        turn = free.pop() if free else await line.wait(chance.choice([None, 0.001, 5]))
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            hand_over(turn)

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(use()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(free) == ["x", "y", "z"]
    assert line.waiting == 0
    assert left, "nobody left the line: the seed tests nothing"
