"""The composition root: opens what an app lives on, in order, and closes it in reverse.

May be imported by ``service`` and ``cli``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from freeloop.database import Address, Database, ServerPort
from freeloop.database.migrations import migrate
from freeloop.outbound import AiohttpTransport, Client

if TYPE_CHECKING:
    from freeloop.settings import Settings

logger = logging.getLogger("freeloop.kit")


@dataclass(frozen=True, slots=True)
class Resources:
    """What is open while the app runs."""

    database: Database
    outbound: Client


@asynccontextmanager
async def open_address(settings: Settings) -> AsyncIterator[tuple[Address, ServerPort | None]]:
    """Give PostgreSQL's address; without ``FREELOOP_DATABASE_URL``, the embedded one's, started first."""
    if settings.database_url is not None:
        yield Address(dsn=settings.database_url.get_secret_value()), None
        return
    # Imported here: with a URL, nothing of the embedded server is loaded.
    from freeloop.database.embedded import EmbeddedServer  # noqa: PLC0415

    server = EmbeddedServer(settings.data_dir, start_timeout=settings.start_timeout)
    address = await server.start()
    try:
        yield address, server
    finally:
        await server.close()


@asynccontextmanager
async def open_resources(settings: Settings, migrations: Path) -> AsyncIterator[Resources]:
    """Open the database (migrated) and the outbound client; close them in reverse, also half-way.

    Args:
        settings: All settings.
        migrations: The folder of the app's migrations.

    Raises:
        StartError: Something could not be opened within ``FREELOOP_START_TIMEOUT``.
        DatabaseUnavailable: The database was not there in that time.
    """
    until = time.monotonic() + settings.start_timeout
    async with AsyncExitStack() as stack:
        address, server = await stack.enter_async_context(open_address(settings))
        database = Database(
            address,
            size=settings.database_pool_size,
            acquire_timeout=settings.database_acquire_timeout,
            statement_timeout=settings.database_statement_timeout,
            server=server,
        )
        stack.push_async_callback(database.close)
        await database.open(timeout=max(0.1, until - time.monotonic()))
        applied = await migrate(address, migrations, timeout=max(1.0, until - time.monotonic()))
        if applied:
            logger.info("migrations applied", extra={"migrations": list(applied)})
        outbound = Client(
            AiohttpTransport(), timeout=settings.fetch_timeout, max_body=settings.fetch_max_body
        )
        stack.push_async_callback(outbound.close)
        yield Resources(database, outbound)
