"""``freeloop top`` tells of processes that do not answer: stopped, or with something that holds the GIL."""

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

import freeloop.inspection.client
from freeloop import Freeloop
from freeloop.cli import app as commands
from freeloop.cli.processes import find_app
from freeloop.errors import InspectionFailed
from freeloop.inspection.folder import list_sockets
from freeloop.settings import Settings
from freeloop.testing import eventually

OWN = os.getpid()
STOPPED = OWN + 1


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.setattr(freeloop.inspection.client, "_ABOUT_TIMEOUT", 0.2)
    # Not pytest's: the path of a socket must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        monkeypatch.setenv("FREELOOP_RUNTIME_DIR", path)
        yield Path(path)


@contextlib.asynccontextmanager
async def serving(folder):
    """Run an app in this process."""
    kit = Freeloop(FastAPI(title="shop"), settings=Settings(_env_file=None, runtime_dir=folder))
    async with kit.open():

        async def is_there():
            return await asyncio.to_thread(list_sockets, folder)

        await eventually(is_there)
        yield


@contextlib.contextmanager
def stopped(folder, number=STOPPED):
    """Put a process there that takes questions, and answers none."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / f"{number}.sock"))
        listening.listen()
        yield


async def run(*arguments):
    return await asyncio.to_thread(CliRunner().invoke, commands, arguments)


async def test_it_is_told(folder):
    async with serving(folder):
        with stopped(folder):
            told = json.loads((await run("top", "--json")).stdout)
            seen = (await run("top", "shop", "--once")).stdout
    assert told["snapshot"]["silent"] == [STOPPED]
    assert [each["values"] for each in told["sentences"] if each["code"] == "silent"] == [
        {"process": STOPPED}
    ]
    assert f"Process {STOPPED} does not answer." in seen


async def test_where_nothing_else_is_there_it_is_named(folder):
    with stopped(folder):
        failed = await run("top")
    assert failed.exit_code == 1
    assert f"process {STOPPED} does not answer" in failed.stderr


async def test_while_top_runs_only_those_count_that_have_answered_before(folder):
    async with serving(folder):
        app = await asyncio.to_thread(find_app, None)
        assert await asyncio.to_thread(app.find) == ([folder / f"{OWN}.sock"], ())
        with stopped(folder):  # it may be of another app
            assert await asyncio.to_thread(app.find) == ([folder / f"{OWN}.sock"], ())
    with stopped(folder, OWN):
        assert await asyncio.to_thread(app.find) == ([], (OWN,))
    with pytest.raises(InspectionFailed, match="has ended"):
        await asyncio.to_thread(app.find)
