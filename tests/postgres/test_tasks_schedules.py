"""Schedules: once a tick, however many processes run; changed at run time; caught up with."""

import asyncio
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from freeloop.errors import NotFound
from freeloop.tasks import Tasks
from freeloop.testing import eventually
from task_rooms import declare, opened, worker

WITHIN = 10.0
UTC_ZONE = ZoneInfo("UTC")  # read here, as apps declare their schedules: before there is a loop


def declare_report(tasks, **schedule):
    @declare(tasks)
    async def report(of: str = "all") -> str:
        return of

    if schedule:
        tasks.schedules.declare(report.bind("sales"), name="nightly", **schedule)
    return report


async def move(tasks, **delta):
    """Let the next tick have come so long ago, as if the database's clock had jumped."""
    await tasks.database.execute(
        "update freeloop.schedules set next_at = clock_timestamp() - $1::interval", timedelta(**delta)
    )


async def keys(tasks):
    return [each.key for each in (await tasks.list(limit=200)).tasks]


async def test_a_tick_starts_one_task_however_many_workers_look(tasks, address):
    others = [Tasks() for _ in range(2)]
    for each in (tasks, *others):
        declare_report(each, every=1)
    async with opened(address, others[0]), opened(address, others[1]):
        async with worker(tasks), worker(others[0]), worker(others[1]):
            began = datetime.now(UTC)
            await eventually(lambda: count(tasks, 3), within=WITHIN)
            took = datetime.now(UTC) - began
        found = await tasks.list()
    assert len({each.key for each in found.tasks}) == len(found.tasks)
    assert len(found.tasks) <= took / timedelta(seconds=1) + 1
    assert {each.result for each in found.tasks if each.state == "succeeded"} == {"sales"}


async def count(tasks, most):
    return len(await keys(tasks)) >= most


@pytest.mark.parametrize(("catch_up", "expected"), [("latest", 1), ("all", 3), ("skip", 0)])
async def test_missed_ticks_are_caught_up_with_as_declared(tasks, catch_up, expected):
    # Not at this minute, so that the latest of the ticks was missed too.
    declare_report(tasks, cron=f"{(datetime.now(UTC).minute + 30) % 60} * * * *", catch_up=catch_up)
    async with worker(tasks):
        await eventually(lambda: schedules(tasks))
    [before] = await tasks.schedules.list()
    await tasks.database.execute(
        "update freeloop.schedules set next_at = $1", before.next_at - timedelta(hours=3)
    )
    async with worker(tasks):
        await eventually(lambda: is_ahead(tasks))
    assert len(await keys(tasks)) == expected


async def schedules(tasks):
    return await tasks.schedules.list()


async def is_ahead(tasks):
    [schedule] = await tasks.schedules.list()
    return schedule.next_at > datetime.now(UTC)


async def test_a_clock_that_jumps_back_starts_no_tick_twice(tasks):
    declare_report(tasks, cron="0 0 * * *", catch_up="latest")
    async with worker(tasks):
        await eventually(lambda: schedules(tasks))
        await move(tasks, minutes=1)
        await eventually(lambda: count(tasks, 1), within=WITHIN)
        [fired] = await tasks.schedules.list()
    # The same tick once more, as after a jump: its key is taken.
    await tasks.database.execute("update freeloop.schedules set next_at = last_at")
    async with worker(tasks):
        await eventually(lambda: is_ahead(tasks))
    assert len(await keys(tasks)) == 1
    assert (await schedules(tasks))[0].last_at == fired.last_at


async def test_a_schedule_is_changed_at_run_time_until_the_code_changes(tasks, address):
    declare_report(tasks, cron="0 3 * * *")
    async with worker(tasks):
        await eventually(lambda: schedules(tasks))
        await tasks.schedules.change("nightly", zone="Asia/Taipei")
        assert (await schedules(tasks))[0].rule.zone == "Asia/Taipei"
        with pytest.raises(ValueError, match="no time zone"):
            await tasks.schedules.change("nightly", zone="Asia/Nowhere")
        await tasks.schedules.change("nightly", every=1)
        await eventually(lambda: count(tasks, 1), within=WITHIN)
        await tasks.schedules.change("nightly", enabled=False)
    for said, rule in [({"cron": "0 3 * * *"}, None), ({"cron": "0 4 * * *"}, "0 4 * * *")]:
        again = Tasks()
        declare_report(again, **said)
        async with opened(address, again), worker(again):
            await eventually(lambda rule=rule, again=again: rule_is(again, rule))
    assert not (await schedules(tasks))[0].enabled


async def rule_is(tasks, cron):
    [schedule] = await tasks.schedules.list()
    return schedule.rule.cron == cron


async def test_a_schedule_is_added_and_removed_at_run_time(tasks):
    report = declare_report(tasks)
    async with worker(tasks):
        await tasks.schedules.add("often", report.bind("costs"), every=1)
        await eventually(lambda: count(tasks, 1), within=WITHIN)
        await tasks.schedules.remove("often")
        assert await schedules(tasks) == []
    with pytest.raises(NotFound, match="no schedule 'often'"):
        await tasks.schedules.change("often", enabled=True)


async def test_what_the_code_no_longer_declares_starts_nothing(tasks, address):
    declare_report(tasks, every=1)
    async with worker(tasks):
        await eventually(lambda: count(tasks, 1), within=WITHIN)
    started = len(await keys(tasks))
    later = Tasks()
    ran = declare_report(later)
    await move(tasks, hours=1)
    async with opened(address, later), worker(later):
        await (await later.start(ran)).result(timeout=WITHIN)
        await asyncio.wait_for(look(later), WITHIN)
    assert len(await keys(tasks)) == started + 1


async def look(tasks):
    await tasks.schedules._start_due()


async def test_a_disabled_schedule_is_not_made_up_for(tasks):
    declare_report(tasks, every=3600, catch_up="all")
    async with worker(tasks):
        await eventually(lambda: schedules(tasks))
        await tasks.schedules.change("nightly", enabled=False)
        await move(tasks, hours=5)
        await tasks.schedules.change("nightly", enabled=True)
        await tasks.schedules._start_due()
    assert await keys(tasks) == []
