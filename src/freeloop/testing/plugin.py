"""Fixtures: one server for the session, one migrated template, a fresh database for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import asyncpg
import pytest

import freeloop.service
from freeloop.database import Address, Database
from freeloop.database.migrations import migrate
from freeloop.testing.given_server import GivenServer
from freeloop.testing.own_server import OwnServer
from freeloop.testing.programs import PROGRAMS_VARIABLE, find_programs
from freeloop.testing.waiting import eventually

pytest_plugins = ["freeloop.testing.blocks"]
_TEMPLATE: Final = "freeloop_template"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Address]:
    """The address of a PostgreSQL that lives as long as the session. Do not stop it: start an OwnServer.

    The embedded one, or the one whose programs lie in the folder that ``TEST_POSTGRES_BIN`` names.
    """
    programs = find_programs() if os.environ.get(PROGRAMS_VARIABLE) else None
    with GivenServer(programs) if programs else OwnServer() as server:
        yield server.address


@pytest.fixture(scope="session")
def migrations() -> Path:
    """The folder of the migrations that the template gets; override it for your own."""
    return Path(freeloop.service.__file__).parent / "migrations"


@pytest.fixture(scope="session")
def template(postgres: Address, migrations: Path) -> str:
    """The name of a migrated database that each test's database is copied from."""

    async def make() -> None:
        await _run(postgres, f"CREATE DATABASE {_TEMPLATE}")
        await migrate(replace(postgres, database=_TEMPLATE), migrations)

    asyncio.run(make())
    return _TEMPLATE


@pytest.fixture
async def address(postgres: Address, template: str) -> AsyncIterator[Address]:
    """The address of a fresh, migrated database that is dropped after the test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await _run(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield replace(postgres, database=name)
    finally:
        await _run(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(address: Address) -> AsyncIterator[Database]:
    """An open database on the test's own copy; a test that leaks a connection fails."""
    database = Database(address, name="test")
    await database.open()
    try:
        yield database
        # A cancelled statement's connection comes back once the server has confirmed the end.
        await eventually(lambda: database.in_use == 0)
    finally:
        await database.close()


async def _run(server: Address, sql: str) -> None:
    connection = await asyncpg.connect(**server.arguments())
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
