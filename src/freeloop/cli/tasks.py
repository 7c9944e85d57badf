"""``freeloop tasks``: look at durable tasks, cancel them, start them again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from json import dumps
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from freeloop.cli.failure import readable_failures
from freeloop.cli.progress import progress

if TYPE_CHECKING:
    from freeloop.tasks import Tasks
    from freeloop.tasks.model import TaskStatus

tasks = typer.Typer(help="Look at durable tasks, cancel them, start them again.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")]
Id = Annotated[UUID, typer.Argument(help="The task's id.", metavar="ID")]


@tasks.command("list")
def show_list(
    state: Annotated[
        str | None, typer.Option(help="Only queued, running, succeeded, failed or cancelled ones.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only those of this name.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 50,
    json: Json = False,
) -> None:
    """List tasks, the latest first."""
    from pydantic import TypeAdapter

    from freeloop.tasks.model import STATES, TaskStatus

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"--state: expected one of {', '.join(STATES)}; got '{state}'")

    async def run(found: Tasks) -> str:
        rows: list[TaskStatus] = []
        before = None
        while len(rows) < limit:
            page = await found.list(limit=limit - len(rows), before=before, name=name, state=state)  # type: ignore[arg-type]  # looked at above
            rows += page.tasks
            before = page.next
            if before is None:
                break
        if json:
            return TypeAdapter(list[TaskStatus]).dump_json(rows, indent=2).decode()
        return "\n".join(map(_line, rows))

    _run(run)


def _line(task: TaskStatus) -> str:
    reason = f"  {task.error.type}: {task.error.message[:100]}" if task.error else ""
    return f"{task.id}  {task.state:<9}  {task.created_at:%Y-%m-%d %H:%M:%S}  {task.name}{reason}"


@tasks.command()
def show(task: Id, json: Json = False) -> None:
    """Show all that is known of a task, as JSON, with or without --json."""
    del json  # every command that prints takes it

    async def run(found: Tasks) -> str:
        return (await found.read(task)).model_dump_json(indent=2)

    _run(run)


@tasks.command()
def cancel(task: Id, json: Json = False) -> None:
    """Cancel a task that waits or runs."""
    _act(task, lambda found: found.cancel(task), "cancelled", "nothing to cancel: it has", json=json)


@tasks.command()
def retry(task: Id, json: Json = False) -> None:
    """Start a task again that has failed or was cancelled."""
    _act(task, lambda found: found.retry(task), "queued", "nothing to retry: it is", json=json)


def _act(
    task: UUID, act: Callable[[Tasks], Awaitable[bool]], done_text: str, else_text: str, *, json: bool
) -> None:
    async def run(found: Tasks) -> str:
        done = await act(found)
        state = (await found.read(task)).state
        if json:
            return dumps({"id": str(task), "done": done, "state": state})
        return done_text if done else f"{else_text} {state}"

    _run(run)


def _run(run: Callable[[Tasks], Awaitable[str]]) -> None:
    with readable_failures():
        with progress("Asking the database"):
            said = asyncio.run(_open_and_run(run))
        if said:
            typer.echo(said)


async def _open_and_run(run: Callable[[Tasks], Awaitable[str]]) -> str:
    # Imported here, so that 'freeloop --help' answers at once.
    from freeloop.database import Database
    from freeloop.resources import open_address
    from freeloop.settings import read_settings
    from freeloop.tasks import Tasks
    from freeloop.tasks.pgqueuer_engine import PgQueuerEngine

    settings = read_settings()
    async with (
        open_address(settings) as (address, server),
        Database(address, size=2, server=server) as database,
        Tasks().open(database, PgQueuerEngine()) as found,
    ):
        said = await run(found)
        await found.signals.flush()
    return said
