"""Migrations: plain SQL files, each applied exactly once however many processes start together.

pogo_core reads and applies the files and keeps its own table, so its command line works on the same
database. It identifies a file by its name only; the checksums here notice one that was changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import asyncpg
from pogo_core.error import BadMigrationError
from pogo_core.migration import Migration
from pogo_core.util.migrate import transaction
from pogo_core.util.sql import ensure_pogo_sync, migration_applied

from freeloop.database.address import Address
from freeloop.database.connect import connected
from freeloop.errors import MigrationError

_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_FILE_NAME: Final = re.compile(r"\d{4}-[a-z0-9][a-z0-9_-]*\.sql")
PUBLIC: Final = "public"
# Any number will do, as long as every process has the same: "freeloop" in ASCII.
_LOCK: Final = 0x66_72_65_65_6C_6F_6F_70
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_PLAN_TIMEOUT: Final = 5.0

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {schema}.freeloop_migration (
    id text PRIMARY KEY,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """What has been applied and what would be next.

    Args:
        applied: ids of the applied migrations, in their order.
        pending: ids of those that :func:`migrate` would apply, in their order.
    """

    applied: tuple[str, ...]
    pending: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    migration: Migration
    checksum: str

    @property
    def id(self) -> str:
        return self.migration.id


async def plan(address: Address, folder: Path, *, schema: str = PUBLIC) -> MigrationPlan:
    """Compare the folder with the database, without changing either.

    Args:
        address: where PostgreSQL listens.
        folder: the folder of ``NNNN-name.sql`` files.
        schema: as of :func:`migrate`.

    Raises:
        MigrationError: A file is malformed, or an applied one was changed or is missing.
        DatabaseUnavailable: The server was not reached within 5 seconds.
    """
    files = await asyncio.to_thread(_read, folder)
    async with connected(address, within=_PLAN_TIMEOUT, name="migrations") as connection:
        return _compare(files, await _applied(connection, schema))


async def migrate(
    address: Address,
    folder: Path,
    *,
    schema: str = PUBLIC,
    timeout: float = 60.0,  # noqa: ASYNC109 - bounds several waits, none of them a migration's own work
) -> tuple[str, ...]:
    """Apply what is pending, one process at a time.

    Each file is applied in a transaction together with the record of it, unless it says
    ``-- transaction: false``.

    Args:
        address: where PostgreSQL listens.
        folder: the folder of ``NNNN-name.sql`` files.
        schema: where the record of what was applied is kept, one for each folder; made where it is missing.
            A name of our own, not quoted. The files name the schema of what they make themselves.
        timeout: seconds to wait for the server, then for another process that migrates, and within a
            migration for each lock of a table. A migration's own work has no limit.

    Returns:
        The ids that this call applied, in their order.

    Raises:
        MigrationError: A file is malformed or failed, an applied one was changed or is missing, or
            another process migrated for longer than the timeout.
        SettingsError: A pooler in transaction mode, where a session holds no lock, stands in between.
        DatabaseUnavailable: The server was not reached in time, or the connection broke.
    """
    address = address.past_pooler("migrations")
    files = await asyncio.to_thread(_read, folder)
    async with connected(address, within=timeout, name="migrations") as connection:
        await _lock(connection, timeout)
        await connection.execute(f"SET lock_timeout = {max(1, int(timeout * 1000))}")
        await ensure_pogo_sync(connection)
        if schema != PUBLIC:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute(_CREATE.format(schema=schema))
        pending = _compare(files, await _applied(connection, schema)).pending
        for file in files:
            if file.id in pending:
                await _apply(connection, file, schema)
        return pending


def _read(folder: Path) -> list[_File]:
    """Read all files of the folder, in their order. Blocks: call it in a thread."""
    if not folder.is_dir():
        raise MigrationError(f"the folder of the migrations, {folder}, does not exist.")
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".sql", ".py"})
    files: list[_File] = []
    for path in paths:
        if path.name == "__init__.py":
            continue
        if not _FILE_NAME.fullmatch(path.name):
            raise MigrationError(
                f"the migration {path.name} must be named NNNN-name.sql, with four digits and a name in "
                "lower case, such as 0002-add-tags.sql. Rename it."
            )
        before = files[-1] if files else None
        if before and before.id[:4] == path.name[:4]:
            raise MigrationError(
                f"the migrations {before.id}.sql and {path.name} have the same number. Renumber the one "
                "that has not been applied anywhere."
            )
        files.append(_load(path, before))
    return files


def _load(path: Path, before: _File | None) -> _File:
    migration = Migration(path.stem, path, set())
    try:
        migration.load()
    except BadMigrationError as error:
        raise MigrationError(
            f"the migration {path.name} cannot be read: {error} {_depends_hint(before)}"
        ) from error
    if migration.depends_ids != ({before.id} if before else set()):
        came = " ".join(sorted(migration.depends_ids)) or "nothing"
        raise MigrationError(f"the migration {path.name} depends on {came}. {_depends_hint(before)}")
    return _File(migration, hashlib.sha256(path.read_bytes()).hexdigest())


def _depends_hint(before: _File | None) -> str:
    if before is None:
        return "The first migration depends on nothing: write '-- depends:' on its second line."
    return f"Each depends on the one before it: write '-- depends: {before.id}' on its second line."


def _compare(files: list[_File], applied: Mapping[str, str]) -> MigrationPlan:
    present = {file.id: file for file in files}
    for id_, checksum in applied.items():
        file = present.get(id_)
        if file is None:
            raise MigrationError(
                f"the migration {id_}.sql was applied to this database (checksum {checksum[:12]}) and is "
                "not in the folder. Restore the file, or run the version that has it."
            )
        if file.checksum != checksum:
            raise MigrationError(
                f"the migration {id_}.sql was changed after it had been applied: its checksum was "
                f"{checksum[:12]} and is {file.checksum[:12]}. Restore the file and make the change in a "
                "new migration."
            )
    return MigrationPlan(
        applied=tuple(file.id for file in files if file.id in applied),
        pending=tuple(file.id for file in files if file.id not in applied),
    )


async def _applied(connection: _Connection, schema: str) -> dict[str, str]:
    """Return the checksum of each applied migration, by id."""
    table = f"{schema}.freeloop_migration"
    if await connection.fetchval("SELECT to_regclass($1)", table) is None:
        return {}
    rows = await connection.fetch(f"SELECT id, checksum FROM {table} ORDER BY id")  # noqa: S608 - our own name
    return {row["id"]: row["checksum"] for row in rows}


async def _lock(connection: _Connection, seconds: float) -> None:
    """Take the lock of the migrations, which the end of the connection gives back.

    By asking again instead of waiting in the server: a waiting statement has a snapshot, on which the
    CREATE INDEX CONCURRENTLY of whoever holds the lock would wait in turn.
    """
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(seconds):
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
    except TimeoutError as error:
        raise MigrationError(
            f"another process has been migrating this database for more than {seconds} s. Wait for it, or "
            "look for it in pg_stat_activity (application_name 'freeloop')."
        ) from error


async def _apply(connection: _Connection, file: _File, schema: str) -> None:
    migration = file.migration
    try:
        async with transaction(connection, migration):
            await migration.apply(connection)
            await migration_applied(connection, migration.id, migration.hash, schema_name=schema)
            await connection.execute(
                f"INSERT INTO {schema}.freeloop_migration (id, checksum) VALUES ($1, $2)",  # noqa: S608 - as above
                migration.id,
                file.checksum,
            )
    except asyncpg.PostgresError as error:
        undone = "Nothing of it was kept" if migration.use_transaction else "It may be half applied"
        raise MigrationError(
            f"the migration {migration.id}.sql failed: {_message(error)}. {undone}: correct the file and "
            "start again."
        ) from error


def _message(error: asyncpg.PostgresError) -> str:
    more = (f"{name}: {text}" for name in ("detail", "hint") if (text := getattr(error, name, None)))
    return "; ".join([str(error).rstrip("."), *(text.rstrip(".") for text in more)])
