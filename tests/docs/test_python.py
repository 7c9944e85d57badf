"""The Python of the pages runs, on real parts."""

import ast
import contextlib
import inspect
import os
import re
from dataclasses import replace
from importlib import import_module

import pytest
from aiohttp import web
from handbook.api_page import PUBLIC, list_names
from stages import STAGES, World

from blocks import DOCS, PAGES, ROOT, place_of, read_blocks
from freeloop import Scope
from freeloop.database import Database
from freeloop.outbound import AiohttpTransport, Client

ALL = [ROOT / "README.md", *PAGES]


def python_of(page):
    return [block for block in read_blocks(page) if block.language == "python" and not block.reason]


@pytest.fixture(autouse=True)
def _no_blocking():
    """Leave the detector out: the top of a page is what a module does at its import, which may block."""


@pytest.fixture(autouse=True)
def _in_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def address(postgres):
    """A database without the service's tables: the pages have their own."""
    name = f"docs_{os.getpid()}"
    async with Database(postgres) as server:
        await server.execute(f"create database {name}")
        try:
            yield replace(postgres, database=name)
        finally:
            await server.execute(f"drop database {name} with (force)")


@pytest.fixture
async def world(database, address, tmp_path):
    url = f"postgresql://{address.user}@/{address.database}?host={address.host}"
    async with upstream() as base:
        yield World(database, address, url, base, tmp_path)


@contextlib.asynccontextmanager
async def upstream():
    """An API that takes any body, and answers everything with a line of JSON."""

    async def answer(request):
        await request.read()
        return web.json_response(1.5 if request.path == "/eur" else {"id": 1})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", STAGES)
async def test_the_python_of_the_page_runs(world, name, monkeypatch):
    monkeypatch.setenv("FREELOOP_DATABASE_URL", world.url)
    monkeypatch.setenv("FREELOOP_RUNTIME_DIR", "none")
    for sdk in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{sdk}_API_KEY", "not-a-key")
    # Examples of others' hosts, in the place of which something real stands.
    real = {
        "postgresql://app:secret@db/shop": world.url,
        "https://rates.example": world.upstream,
        "https://api.example.com": world.upstream,
    }
    async with Client(AiohttpTransport()) as client:
        names = {"__name__": name, "open_client": client}
        async with STAGES[name](world, names):
            for block in python_of(DOCS / name):
                if not block.title:
                    await run(block, names, real)


async def run(block, names, real):
    text = re.sub("|".join(map(re.escape, real)), lambda found: real[found[0]], block.text)
    code = compile(
        "\n" * (block.line - 1) + text, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    async with contextlib.AsyncExitStack() as stack:
        if "kit" in names:
            await stack.enter_async_context(names["kit"].open())
        scope = Scope("docs", seconds=30)
        scope.enter()
        stack.push_async_callback(scope.end_children)
        result = eval(code, names)  # noqa: S307 - our own pages
        if inspect.isawaitable(result):
            await result
        if "task" in names:
            await names["task"]


def test_all_python_is_run_or_says_why_not():
    left = [
        str(block)
        for page in ALL
        if place_of(page) not in STAGES
        for block in python_of(page)
        if not block.title
    ]
    assert not left, "give the page a stage, or say <!-- not run: reason --> before the block"


def test_what_the_pages_import_is_documented():
    known = list_names()
    unknown = []
    for page in ALL:
        for block in python_of(page):
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "freeloop":
                    unknown += [
                        f"{block}: {node.module}.{name.name}"
                        for name in node.names
                        if f"{node.module}.{name.name}" not in known and node.module != "freeloop.errors"
                        and not _is_same(node.module, name.name)
                    ]  # fmt: skip
    assert not unknown


def _is_same(module, name):
    """Whether it is a public name that is imported from where it is made."""
    found = getattr(import_module(module), name)
    return any(getattr(import_module(each), name, None) is found for each in PUBLIC)
