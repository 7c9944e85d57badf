"""The marks and the option of the pytest plugin, each in a pytest of its own."""

import re

import pytest

pytest_plugins = ["pytester"]

BLOCKS = """
import time, asyncio, pytest

def compute():
    time.sleep(0.15)

{mark}
async def test_blocks():
    await asyncio.sleep(0)
    compute()

async def test_waits():
    await asyncio.sleep(0.15)
"""
LEAKS = """
import aiohttp, asyncio, pytest
from freeloop.scope import Scope

kept = []

@pytest.mark.no_leaks(within=0.1)
async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(60), name="left"))

@pytest.mark.no_leaks(within=0.1)
async def test_lease():
    kept.append(scope := Scope("r"))
    scope.borrow("connection", "main")

@pytest.mark.no_leaks(within=0.1)
async def test_connections():
    kept.append(aiohttp.ClientSession())

@pytest.fixture
async def served():
    async def answer(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield
    writer.close()
    server.close()
    await server.wait_closed()

@pytest.mark.no_leaks(within=0.1)
async def test_what_waits_for_the_collector():
    Scope("r").borrow("connection", "main")

@pytest.mark.no_leaks
async def test_its_fixtures_end(served):
    await asyncio.sleep(0)

@pytest.mark.no_leaks
async def test_tidy():
    with Scope("r").borrow("connection", "main"):
        await asyncio.create_task(asyncio.sleep(0))
"""


@pytest.fixture
def run(pytester):
    pytester.makeini("[pytest]\nanyio_mode = auto\naddopts = --strict-markers\n")
    pytester.makeconftest(
        'import pytest\npytest_plugins = ["freeloop.testing.plugin"]\n'
        '@pytest.fixture(scope="session")\ndef anyio_backend():\n    return "asyncio"\n'
    )

    def run(source, *options):
        pytester.makepyfile(test_it=source)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    return run


def test_a_marked_test_that_blocks_fails_with_the_line_and_what_to_do(run):
    result = run(BLOCKS.format(mark="@pytest.mark.no_blocking(threshold=0.1)"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines(
        [
            r"the event loop was blocked for 0\.\d+ s \(waiting\) at .*test_it\.py:4 in compute",
            r"  Write 'await asyncio.sleep\(seconds\)'\.",
        ]
    )


def test_without_the_mark_and_the_option_nothing_is_watched(run):
    run(BLOCKS.format(mark="")).assert_outcomes(passed=2)


def test_a_test_may_be_left_out(run):
    run(BLOCKS.format(mark="@pytest.mark.no_blocking(threshold=None)"), "--freeloop").assert_outcomes(
        passed=2
    )


def test_a_suite_passes_with_its_baseline_and_is_told_what_may_go(run, pytester):
    run(BLOCKS.format(mark=""), "--freeloop").assert_outcomes(passed=1, failed=1)
    run(BLOCKS.format(mark=""), "--freeloop", "--freeloop-update").assert_outcomes(passed=2)
    baseline = pytester.path / "freeloop-baseline.txt"
    assert baseline.read_text() == "test_it.py:compute waiting\n"
    baseline.write_text("test_it.py:compute waiting  # until the driver awaits\ngone.py:old gil\n")
    result = run(BLOCKS.format(mark=""), "--freeloop")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*the baseline has lines that were not met*", "gone.py:old gil"])


def test_what_a_test_leaves_behind_is_told(run):
    result = run(LEAKS)
    result.assert_outcomes(passed=6, errors=3)
    expected = [
        "  task 'left':",
        "  connection of 'main', lent by *test_lease",
        "  aiohttp.client.ClientSession, open",
    ]
    result.stdout.fnmatch_lines_random(expected)


def test_the_option_looks_at_every_async_test(run):
    unmarked = re.sub(r"@pytest.mark.no_leaks.*", "", LEAKS)
    run(unmarked, "--freeloop-leaks", "0.1").assert_outcomes(passed=6, errors=3)


@pytest.mark.parametrize("mark", ["no_blocking", "no_leaks"])
def test_a_mark_on_a_test_that_is_not_async_fails(run, mark):
    result = run(f"import pytest\n@pytest.mark.{mark}\ndef test_sync():\n    pass\n")
    result.assert_outcomes(failed=1)
