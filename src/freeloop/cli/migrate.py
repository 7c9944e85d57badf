"""``freeloop migrate``: bring the database's schema up to date, or show what would run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from freeloop.cli.failure import readable_failures
from freeloop.cli.progress import progress


def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print applied and pending ones as JSON.")] = False,
) -> None:
    """Apply the service's migrations, each once, under a lock; with --plan, only show them."""
    with readable_failures():
        # Imported here, so that 'freeloop --help' answers at once.
        import orjson

        with progress("Reading the migrations" if plan else "Migrating"):
            done = asyncio.run(_migrate(only_plan=plan))
        if json:
            typer.echo(orjson.dumps(done, option=orjson.OPT_INDENT_2))
            return
        for what, names in done.items():
            for name in names:
                typer.echo(f"{what:<7}  {name}")


async def _migrate(*, only_plan: bool) -> dict[str, Sequence[str]]:
    from freeloop.database import migrations
    from freeloop.resources import open_address
    from freeloop.service.app import MIGRATIONS
    from freeloop.settings import load_settings

    settings = load_settings()
    async with open_address(settings) as (address, _):
        if only_plan:
            found = await migrations.plan(address, MIGRATIONS)
            return {"applied": found.applied, "pending": found.pending}
        done = await migrations.migrate(address, MIGRATIONS, timeout=settings.start_timeout)
        return {"applied": done, "pending": ()}
