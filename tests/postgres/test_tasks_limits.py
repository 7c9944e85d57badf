"""Limits of queues, tasks and groups, across workers; and who waits for them."""

import asyncio
import itertools
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.errors import TaskCancelled
from freeloop.tasks import Tasks, current_execution
from freeloop.tasks.limits import Limit, State, decide, prune
from freeloop.testing import eventually
from task_rooms import declare, opened, worker

WITHIN = 15.0


class Gauge:
    """Counts what runs at once, by name, over all workers of the test's process."""

    def __init__(self):
        self.running = Counter()
        self.most = Counter()
        self.began = []

    async def hold(self, name, seconds=0.02):
        self.began.append(time.monotonic())
        self.running[name] += 1
        self.most[name] = max(self.most[name], self.running[name])
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running[name] -= 1


async def left(tasks):
    """Return what is left in the tables of the limits."""
    return [
        await tasks.database.fetch_value(f"select count(*) from freeloop.{table}")  # noqa: S608 - constants
        for table in ("permits", "parked")
    ] + [await tasks.database.fetch_value("select coalesce(sum(running), 0) from freeloop.limits")]


async def finish(tasks, handles):
    await asyncio.gather(*(tasks.get(each.id, each.name).result(timeout=WITHIN) for each in handles))


async def test_a_queues_limit_holds_for_all_its_tasks_on_all_workers(tasks, address):
    gauge, other = Gauge(), Tasks()
    for each in (tasks, other):
        each.limit_queue("mail", concurrency=3)

        @declare(each, "letter", queue="mail")
        async def letter() -> None:
            await gauge.hold("mail")

        @declare(each, "parcel", queue="mail")
        async def parcel() -> None:
            await gauge.hold("mail")

        @declare(each, "free")
        async def free() -> None:
            await gauge.hold("free", 0.2)

    async with opened(address, other), worker(tasks), worker(other):
        handles = await tasks.start_many([letter.bind(), parcel.bind(), free.bind()] * 10)
        await finish(tasks, handles)
    assert gauge.most["mail"] == 3
    assert gauge.most["free"] > 3
    await eventually(lambda: nothing_left(tasks))


async def nothing_left(tasks):
    return await left(tasks) == [0, 0, 0]


async def test_each_group_has_a_limit_of_its_own(tasks):
    gauge = Gauge()

    @declare(tasks, group_concurrency=1)
    async def sync(customer: str) -> None:
        await gauge.hold(customer)
        await gauge.hold("all", 0.01)

    calls = [sync.bind(customer).grouped(customer) for customer in "abc" * 8]
    async with worker(tasks):
        await finish(tasks, await tasks.start_many(calls))
        alone = await tasks.start(sync, "nobody")
        await finish(tasks, [alone])
    assert [gauge.most[each] for each in "abc"] == [1, 1, 1]
    assert gauge.most["all"] > 1
    assert await nothing_left(tasks)
    await prune(tasks.database)
    assert await tasks.database.fetch_value("select count(*) from freeloop.limits") == 0


@pytest.mark.parametrize("of", ["task", "queue", "group"])
async def test_a_rate_holds_across_workers(tasks, address, of):
    gauge, other = Gauge(), Tasks()
    options = {"task": {"rate": 20}, "queue": {"queue": "calls"}, "group": {"group_rate": 20}}[of]
    for each in (tasks, other):
        each.limit_queue("calls", rate=20)

        @declare(each, "call", **options)
        async def call() -> None:
            await gauge.hold("call", 0)

    async with opened(address, other), worker(tasks), worker(other):
        await finish(tasks, await tasks.start_many([call.bind().grouped("one")] * 21))
    took = gauge.began[-1] - gauge.began[0]
    assert 0.7 < took < 5.0  # 20 pauses of 0.05 s, and how late the first and the last were
    assert len(gauge.began) == 21
    assert await nothing_left(tasks)


async def test_many_that_wait_do_not_keep_workers_busy(tasks):
    gauge = Gauge()

    @declare(tasks, group_concurrency=1)
    async def low(n: int) -> None:
        await gauge.hold("low", 0)

    handles = await tasks.start_many([low.bind(n).grouped("one") for n in range(150)])
    async with worker(tasks, concurrency=10):
        await finish(tasks, handles)
    assert gauge.most["low"] == 1
    assert await nothing_left(tasks)


async def test_one_that_waits_is_cancelled_and_leaves_its_turn_to_the_next(tasks):
    may_end = asyncio.Event()
    running = asyncio.Event()

    @declare(tasks, group_concurrency=1)
    async def work() -> None:
        running.set()
        await may_end.wait()

    async with worker(tasks):
        handles = await tasks.start_many([work.bind().grouped("one")] * 4)
        await running.wait()
        await eventually(lambda: parked(tasks, 3))
        for handle in handles[1:3]:
            assert await handle.cancel()
            with pytest.raises(TaskCancelled):
                await handle.result(timeout=1)
        may_end.set()
        await finish(tasks, [handles[0], handles[3]])
        assert await nothing_left(tasks)


async def parked(tasks, count):
    return (await left(tasks))[1] == count


async def test_a_failure_and_a_stop_give_the_place_to_others(tasks):
    running = asyncio.Event()

    @declare(tasks, group_concurrency=1, retries=1, backoff=0.3)
    async def work(kind: str) -> str:
        if kind == "fails" and current_execution().attempt == 1:
            raise ValueError("no")
        if kind == "stopped" and current_execution().attempt == 1:
            running.set()
            await asyncio.sleep(60)
        return kind

    first, second = await tasks.start_many(
        [work.bind("fails").grouped("a"), work.bind("stopped").grouped("a")]
    )
    async with worker(tasks):
        await running.wait()
    assert (await second.state(), (await left(tasks))[2]) == ("queued", 0)
    async with worker(tasks):
        await finish(tasks, [first, second])
    assert await nothing_left(tasks)


async def test_a_vanished_workers_places_come_back(tasks, address):
    running = asyncio.Event()

    @declare(tasks, group_concurrency=1)
    async def work() -> int:
        running.set()
        if current_execution().attempt == 1:
            await asyncio.sleep(60)
        return current_execution().attempt

    async with worker(tasks) as lost:
        handle = await tasks.start(work, group="a")
        await running.wait()
        await lost._bury(lost.id, await tasks.database.fetch_value("select beats from freeloop.workers"))
        # Found out by its own heartbeat, under a new name it takes its own task over.
        assert await handle.result(timeout=WITHIN) == 2
    assert await nothing_left(tasks)


LIMITS = [Limit("a", 2), Limit("b", None, 5.0), Limit("c", 1, 2.0)]


@given(st.lists(st.lists(st.sampled_from(LIMITS), unique=True, min_size=1), max_size=30))
def test_no_decision_goes_over_a_limit(wants):
    states = {limit.name: State() for limit in LIMITS}
    decision = decide(list(enumerate(wants)), states, set())
    granted = {job for job, _ in decision.granted}
    assert granted | decision.delays.keys() | decision.parked.keys() == set(range(len(wants)))
    assert not granted & decision.delays.keys()
    assert not granted & decision.parked.keys()
    for limit in LIMITS:
        under = [job for job, name in decision.granted if name == limit.name]
        assert len(under) == states[limit.name].running
        assert limit.concurrency is None or len(under) <= limit.concurrency
        if limit.rate:
            # One begins now, each other one has a time of its own.
            assert len(under) <= 1
            times = [decision.delays[job] for job, name in decision.reserved if name == limit.name]
            assert all(b - a >= 1 / limit.rate - 1e-9 for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"rate": 0}, {"rate": -1.0}])
def test_a_limit_that_is_wrong_says_so(wrong):
    with pytest.raises(ValueError, match="or None; got"):
        Limit("x", **wrong)
