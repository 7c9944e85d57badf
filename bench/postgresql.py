"""The PostgreSQL that all peers of a case share: the embedded one, on the load generator's core."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from bench.machine import read_version
from freeloop.database.address import Address
from freeloop.database.embedded import EmbeddedServer
from freeloop.database.embedded.binaries import find_binaries
from freeloop.database.migrations import migrate
from freeloop.service.app import MIGRATIONS

_TIMEOUT = 60.0
_FILL = """
    insert into items (name, description, price, tags)
    select 'Spanner ' || n, 'Forged steel, size ' || n % 40, 4.5 + n % 1000 * 0.25, array['tool', 'steel']
    from generate_series(1, $1) as n;
"""
# What the tutorial's table would have: no revision, no stamp, so that SELECT * costs nothing more.
_COPY = """
    create table plain_items as
        select id, name, description, price, tags, created_at, updated_at from items order by id;
    alter table plain_items add primary key (id);
"""


@dataclass(frozen=True, slots=True)
class Shop:
    """A database with items.

    Attributes:
        address: Where it is. The table ``plain_items`` has the same rows as the service's own.
    """

    address: Address

    @property
    def environment(self) -> dict[str, str]:
        """What tells ours and the peers where it is."""
        socket = f"{self.address.host}"
        return {
            "FREELOOP_DATABASE_URL": f"postgresql://postgres@/{self.address.database}?host={socket}",
            "BENCH_SOCKET": socket,
        }


@contextmanager
def open_shop(data_dir: Path, count: int) -> Iterator[Shop]:
    """Start PostgreSQL on the caller's core, with items of the ids 1 to ``count``; it ends with the block."""
    server = EmbeddedServer(data_dir, start_timeout=_TIMEOUT)
    address = asyncio.run(server.start())
    try:
        asyncio.run(_fill(address, count))
        yield Shop(address)
    finally:
        asyncio.run(server.close())


async def _fill(address: Address, count: int) -> None:
    await migrate(address, MIGRATIONS, timeout=_TIMEOUT)
    connection = await asyncpg.connect(**address.arguments(), timeout=_TIMEOUT)
    try:
        await connection.execute(_FILL, count, timeout=_TIMEOUT)
        await connection.execute(_COPY, timeout=_TIMEOUT)
        await connection.execute("vacuum analyze", timeout=_TIMEOUT)
    finally:
        await connection.close(timeout=_TIMEOUT)


def add_items(shop: Shop, count: int) -> None:
    """Add items to the service's table, and let PostgreSQL look at them."""
    if count > 0:
        asyncio.run(_add(shop.address, count))


async def _add(address: Address, count: int) -> None:
    connection = await asyncpg.connect(**address.arguments(), timeout=_TIMEOUT)
    try:
        await connection.execute(_FILL, count, timeout=_TIMEOUT)
        await connection.execute("vacuum analyze items", timeout=_TIMEOUT)
    finally:
        await connection.close(timeout=_TIMEOUT)


def find_pgbench() -> str | None:
    """Return PostgreSQL's own load generator; None where there is none."""
    shipped = find_binaries() / "pgbench"
    return str(shipped) if shipped.is_file() else shutil.which("pgbench")


def find_versions(*, pgbench: bool = False) -> dict[str, str | None]:
    """Return the version of the embedded PostgreSQL, and with ``pgbench`` that of its load generator."""
    versions = {"PostgreSQL": read_version(str(find_binaries() / "postgres"), "--version")}
    if pgbench and (command := find_pgbench()) is not None:
        versions["pgbench"] = read_version(command, "--version")
    return versions
