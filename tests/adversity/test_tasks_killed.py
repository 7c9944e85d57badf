"""Workers are killed, stopped, blocked and busy: what they ran runs again; what lives is never run twice."""

import asyncio
import os
import signal
import time

import pytest
import tasks_app
from task_processes import WorkerProcesses, opened, working
from tasks_app import kill_me, sleep

from freeloop.errors import TaskFailed
from freeloop.testing import eventually

TUNED = {"FREELOOP_WORKER_HEARTBEAT_TIMEOUT": 1}


@pytest.fixture
async def tasks(address):
    async with opened(address) as tasks:
        yield tasks


@pytest.fixture
def processes(address):
    with WorkerProcesses(address) as processes:
        yield processes


async def started(processes, **environment):
    process = await asyncio.to_thread(processes.worker, **environment)
    await asyncio.to_thread(working, process)
    return process


async def running(tasks, handle):
    """Wait until an execution has begun; return its process."""

    async def find():
        return await tasks.database.fetch_value(
            "select pid from runs where task = $1 order by id desc limit 1", handle.id
        )

    await eventually(find, within=20)
    return await find()


@pytest.mark.parametrize(("settings", "bound"), [({}, 8.0), (TUNED, 2.0)], ids=["default", "tuned"])
async def test_a_killed_workers_task_runs_again_in_time(tasks, processes, settings, bound):
    workers = [await started(processes, **settings) for _ in range(2)]
    handle = await tasks.start(sleep, 3600)
    pid = await running(tasks, handle)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()

    async def elsewhere():
        return await tasks.database.fetch_value(
            "select pid from runs where task = $1 and pid <> $2", handle.id, pid
        )

    await eventually(elsewhere, within=30)
    assert time.monotonic() - killed < bound
    assert {await elsewhere(), pid} == {worker.process.pid for worker in workers}
    status = await handle.status()
    assert (status.state, status.attempt, status.losses, status.failures) == ("running", 2, 1, 0)
    await handle.cancel()


@pytest.mark.parametrize("kind", ["block_the_loop", "compute"])
async def test_a_busy_worker_keeps_its_task(tasks, processes, kind):
    for _ in range(2):
        await started(processes, **TUNED)
    handle = await tasks.start(getattr(tasks_app, kind), 5.0)
    pid = await handle.result(timeout=30)
    status = await handle.status()
    assert (status.attempt, status.losses) == (1, 0)
    assert pid in {each.process.pid for each in processes._running}


async def test_a_stopped_worker_loses_its_task_and_gives_it_up_when_it_wakes(tasks, processes):
    workers = {each.process.pid: each for each in [await started(processes, **TUNED) for _ in range(2)]}
    handle = await tasks.start(sleep, 6.0)
    first = await running(tasks, handle)
    os.kill(first, signal.SIGSTOP)
    try:
        await eventually(lambda: second(tasks, handle, first), within=20)
    finally:
        os.kill(first, signal.SIGCONT)
    lost = await asyncio.to_thread(
        workers[first].wait_for, lambda record: "taken for dead" in record.get("event", "")
    )
    assert lost["tasks"] == 1
    assert await handle.result(timeout=30) == await second(tasks, handle, first)
    # The first execution was cancelled before its end, and has written nothing.
    assert await tasks.database.fetch_value("select count(*) from runs where ended is not null") == 1
    assert (await handle.status()).attempt == 2


async def second(tasks, handle, first):
    return await tasks.database.fetch_value(
        "select pid from runs where task = $1 and pid <> $2", handle.id, first
    )


async def test_sigterm_hands_back_what_does_not_end_in_time(tasks, processes):
    first = await started(processes, FREELOOP_SHUTDOWN_TIMEOUT=3)
    long, short = await tasks.start(sleep, 3600), await tasks.start(sleep, 1.5)
    await running(tasks, long)
    await running(tasks, short)
    began = time.monotonic()
    assert await asyncio.to_thread(first.stop, signal.SIGTERM) == 0
    assert time.monotonic() - began < 3 + 3  # on a busy machine; the task itself would take an hour
    assert await short.state() == "succeeded"
    status = await long.status()
    assert (status.state, status.attempt, status.losses, status.failures) == ("queued", 1, 0, 0)
    assert await tasks.database.fetch_value("select count(*) from freeloop.workers") == 0


async def test_a_task_that_kills_its_workers_fails_in_the_end(tasks, processes):
    handle = await tasks.start(kill_me)
    for _ in range(5):
        process = await asyncio.to_thread(processes.worker, FREELOOP_WORKER_HEARTBEAT_TIMEOUT=0.5)
        assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
    await started(processes, FREELOOP_WORKER_HEARTBEAT_TIMEOUT=0.5)
    with pytest.raises(TaskFailed, match="WorkerVanished: the worker that ran it vanished 5 times"):
        await handle.result(timeout=30)


async def test_the_command_takes_from_the_queues_that_it_was_given(tasks, processes):
    other = await asyncio.to_thread(processes.worker, "--queue", "mail", "--queue", "video")
    await asyncio.to_thread(working, other)
    handle = await tasks.start(sleep, 0)
    assert await tasks.database.fetch_value("select queues from freeloop.workers") == ["mail", "video"]
    mine = await asyncio.to_thread(processes.worker, "--queue", "default")
    assert await handle.result(timeout=30) == mine.process.pid


async def test_the_command_line_shows_cancels_and_starts_again(tasks, processes):
    handle = await tasks.start(sleep, 1.0, delay=3600)
    for command, state in [
        ("list", "queued"),
        ("cancel", "cancelled"),
        ("retry", "queued"),
        ("show", "queued"),
    ]:
        arguments = [] if command == "list" else [str(handle.id)]
        process = await asyncio.to_thread(processes.command, "tasks", command, *arguments)
        assert await asyncio.to_thread(process.wait, 60) == 0
        assert await handle.state() == state
