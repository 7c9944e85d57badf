"""A route's places: none is lost, whoever leaves, gives up or is cancelled in whichever turn of the loop."""

import asyncio
import random

import pytest

from freeloop.gate.admission import Admission, Verdict
from freeloop.gate.bulkhead import Bulkhead
from freeloop.gate.declare import Declaration
from freeloop.gate.limit import AdaptiveLimit


class OnePlace(Admission):
    """An admission whose limit stays what it is."""

    def __init__(self, limit=1, room=50):
        super().__init__(AdaptiveLimit())
        self._places, self._room_for = limit, room

    def arrive(self, now):
        if self.running < self._places and not self.waiting:
            self.running += 1
            return Verdict.ADMIT
        if self.waiting < self._room_for:
            self.waiting += 1
            return Verdict.WAIT
        self.shed += 1
        return Verdict.SHED

    def leave(self, now, latency):
        self.running -= 1
        return max(0, min(self.waiting, self._places - self.running))


def hold(admission):
    return admission, Bulkhead("/x", Declaration(), admission)


async def test_cancelled_in_the_turn_in_which_a_place_comes_free():
    admission, bulkhead = hold(OnePlace())
    assert admission.arrive(0) is Verdict.ADMIT
    assert admission.arrive(0) is Verdict.WAIT
    waiting = asyncio.create_task(bulkhead.wait(admission, 5))
    await asyncio.sleep(0)
    waiting.cancel()
    bulkhead.leave(admission, 0, None)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (admission.running, admission.waiting) == (0, 0)


async def test_promoted_in_the_turn_in_which_it_is_cancelled():
    admission, bulkhead = hold(OnePlace())
    admission.arrive(0)
    assert admission.arrive(0) is Verdict.WAIT
    assert admission.arrive(0) is Verdict.WAIT
    first = asyncio.create_task(bulkhead.wait(admission, 5))
    second = asyncio.create_task(bulkhead.wait(admission, 5))
    await asyncio.sleep(0)
    bulkhead.leave(admission, 0, None)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second
    assert (admission.running, admission.waiting) == (1, 0)


async def test_who_waits_in_vain_is_counted_as_shed():
    admission, bulkhead = hold(OnePlace())
    admission.arrive(0)
    admission.arrive(0)
    assert not await bulkhead.wait(admission, 0.01)
    assert (admission.running, admission.waiting, admission.shed) == (1, 0, 1)


@pytest.mark.parametrize("seed", range(20))
async def test_at_random_moments_no_place_is_lost_and_no_limit_is_passed(seed):
    chance = random.Random(seed)  # noqa: S311 - a seed, no secret
    admission, bulkhead = hold(OnePlace(limit=3, room=10))
    most = 0

    async def request():
        nonlocal most
        verdict = admission.arrive(0)
        if verdict is Verdict.SHED:
            return
        if verdict is Verdict.WAIT and not await bulkhead.wait(admission, chance.choice([0.001, 5])):
            return
        most = max(most, admission.running)
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            bulkhead.leave(admission, 0, None)

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(request()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.running, admission.waiting) == (0, 0)
    assert most == 3
