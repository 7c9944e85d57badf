"""Pages that are walked through from their first line to their last, in a fresh folder."""

import asyncio
import shutil
import sys

import pytest
from walk import Walk

from blocks import DOCS, read_blocks
from freeloop.service.sample import SampleApi
from freeloop.testing.folders import make_folder, wait_until_stopped

WALKS = {"tutorial.md", "from-the-tutorial.md", "adopt.md"}  # the second by a file of its own


@pytest.fixture
async def blog():
    """The bundled sample API, in the place of the one on the internet."""
    async with SampleApi() as api:
        yield api.sources["posts"].removesuffix("/posts")


@pytest.fixture
def folder():
    folder = make_folder()
    yield folder
    wait_until_stopped(folder / "data")
    shutil.rmtree(folder)


def follow(page, folder, python=sys.executable, **environment):
    """Walk through the page; return how long its commands took."""
    with Walk(folder, python, **environment) as walk:
        walk.take([block for block in read_blocks(DOCS / page) if block.language != "python" or block.title])
        walk.stop()
        return walk.seconds


@pytest.mark.timeout(300)  # it may be the first to need what is installed
async def test_a_newcomer_gets_through_the_tutorial(installed, folder, blog):
    """From the package alone: what only the tests depend on is not there."""
    python = installed / "bin" / "python"
    seconds = await asyncio.to_thread(follow, "tutorial.md", folder, python, FREELOOP_SOURCES=f"blog={blog}")
    (five,) = [taken for command, taken in seconds.items() if "/wait" in command]
    assert five < 5, "five requests of two seconds each were not served together"


def test_the_app_that_adopts_it_runs(tmp_path):
    follow("adopt.md", tmp_path)


@pytest.mark.parametrize(
    ("command", "expected"), [("echo '{\"id\": 1}'", '{"id": 2}'), ("echo '[1]'", "[1, 2]"), ("false", "")]
)
def test_what_does_not_come_is_told(tmp_path, monkeypatch, command, expected):
    monkeypatch.setattr("walk.BOUND", 0.5)
    with pytest.raises(AssertionError, match="a page:7"), Walk(tmp_path) as walk:
        walk.command(command, expected, "a page:7")
