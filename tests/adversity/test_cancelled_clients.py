"""A thousand clients go away at random moments; nothing that was borrowed stays out."""

import asyncio
import json
import random

import pytest

from database_witness import Witness
from freeloop.testing import eventually
from run_process import BOUND, Processes

REQUESTS = 1_000
AT_ONCE = 20
LONGEST = 0.2  # seconds; some answers come before their client goes
PATHS = ("/transaction", "/statement", "/outbound", "/thread", "/run-sync", "/children")


@pytest.fixture
def witness(postgres):
    with Witness(postgres) as witness:
        yield witness


@pytest.fixture
def running(witness):
    with Processes() as processes:
        app = processes.freeloop(
            "cancel_app:app", FREELOOP_DRAIN_DELAY=0, TEST_ADDRESS=json.dumps(witness.address)
        )
        yield app, app.port


@pytest.mark.parametrize("seed", [1])
async def test_requests_cancelled_at_random_moments_leave_nothing_behind(running, witness, seed):
    app, port = running
    chance = random.Random(seed)  # noqa: S311 - it has to be repeatable, not secret
    before = await ask(port, "/left")
    cut = answered = 0

    async def send_until_enough():
        nonlocal cut, answered
        while cut < REQUESTS:
            path, seconds = chance.choice(PATHS), chance.uniform(0, LONGEST)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            try:
                async with asyncio.timeout(seconds):
                    assert b" 200 " in await reader.readline()
                    answered += 1
            except TimeoutError:
                cut += 1
            writer.transport.abort()

    async with asyncio.timeout(BOUND):
        await asyncio.gather(*(send_until_enough() for _ in range(AT_ONCE)))
    assert answered > 0  # some came so far; the others were cut anywhere on the way

    def is_back(left):
        same = all(left[name] == before[name] for name in before if name != "alive")
        # Threads that idle are kept for the next call: routes, critical, run_sync, and those of the start.
        return same and left["alive"] <= before["alive"] + 84

    left = before
    try:
        async with asyncio.timeout(30):
            while not is_back(left := await ask(port, "/left")):
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"left: {left}\nbefore: {before}")

    async def all_idle():
        sessions = await witness.sessions()
        return len(sessions) <= 10 and {state for state, _ in sessions} <= {"idle"}

    await eventually(all_idle, within=30)
    assert await asyncio.to_thread(app.stop, timeout=BOUND) == 0
    await eventually(witness.has_no_session, within=30)
    # asyncpg says so where BEGIN itself was cancelled, and rolls it back.
    expected = "Resetting connection with an active transaction"
    errors = [record for record in app.records if record.get("level") == "error"]
    problems = [record for record in errors if expected not in record["event"]]
    assert problems == []


async def ask(port, path):
    async with asyncio.timeout(BOUND):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])
