"""``freeloop migrate``: bring the database's schema up to date, or show what would run."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from freeloop.cli.failure import readable_failures


def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would run.")] = False,
) -> None:
    """Apply the service's migrations, each once, under a lock; with --plan, only show them."""
    with readable_failures():
        asyncio.run(_migrate(only_plan=plan))


async def _migrate(*, only_plan: bool) -> None:
    # Imported here, so that 'freeloop --help' answers at once.
    from freeloop.database import migrations
    from freeloop.kit import open_address
    from freeloop.service.app import MIGRATIONS
    from freeloop.settings import load_settings

    settings = load_settings()
    async with open_address(settings) as (address, _):
        if only_plan:
            found = await migrations.plan(address, MIGRATIONS)
            for name in found.applied:
                typer.echo(f"applied  {name}")
            for name in found.pending:
                typer.echo(f"pending  {name}")
        else:
            for name in await migrations.migrate(address, MIGRATIONS, timeout=settings.start_timeout):
                typer.echo(f"applied  {name}")
