"""``freeloop doctor``: what an app will stumble over, found without running it."""

from __future__ import annotations

import inspect
import json as json_
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from freeloop.cli.failure import readable_failures
from freeloop.cli.progress import progress

if TYPE_CHECKING:
    from freeloop.settings import Settings

_RUFF_TIMEOUT: Final = 60.0  # seconds
_NO_RUFF: Final = "calls that block the event loop were not looked for: ruff is not installed"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an app will stumble over.

    Attributes:
        check: Which check has found it.
        place: Where: a setting, a route, ``file:line``.
        says: What it is.
        remedy: What to do.
        severity: ``problem`` or ``note``.
    """

    check: str
    place: str
    says: str
    remedy: str
    severity: str = "problem"


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(help="module:attribute, module, or a file; without it main.py, app.py or api.py."),
    ] = None,
    app_dir: Annotated[str, typer.Option(help="Folder that modules are looked up in.")] = ".",
    factory: Annotated[
        bool, typer.Option("--factory", help="The attribute is a function that returns the app.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what an app will stumble over; exit code 1 where a problem is found."""
    with readable_failures(), progress("Looking at the app"):
        from freeloop.gate.bulkheads import find_routes
        from freeloop.server.target import load_app
        from freeloop.settings import read_settings

        settings = read_settings()
        app = load_app(target, app_dir=app_dir, factory=factory)
        routes = find_routes(app)
        found = [
            *check_settings(),
            *check_budget_of(settings, tasks=declares_tasks(app)),
            *check_routes(routes, settings),
            *check_calls(Path(app_dir)),
        ]
    if json:
        typer.echo(json_.dumps([asdict(each) for each in found], indent=2))
    else:
        for each in found:
            mark = "✗" if each.severity == "problem" else "·"
            typer.echo(f"{mark} {each.place}: {each.says}\n    {each.remedy}")
        problems = sum(each.severity == "problem" for each in found)
        typer.echo(f"{problems} problems, {len(found) - problems} notes, {len(routes)} routes looked at")
    if any(each.severity == "problem" for each in found):
        raise typer.Exit(1)


def check_settings() -> Iterator[Finding]:
    """Yield variables that are no settings."""
    from freeloop.settings import find_unknown

    for line in find_unknown():
        name, _, says = line.partition(" ")
        yield Finding("settings", name, says, "Correct its name, or remove it.")


def declares_tasks(app: object) -> bool:
    """Return whether an app's kit has durable tasks, which take connections of their own."""
    from freeloop.server.target import find_kit

    kit = find_kit(app)
    return kit is not None and bool(kit.tasks.declared)


def check_budget_of(settings: Settings, *, tasks: bool) -> Iterator[Finding]:
    """Yield what PostgreSQL will not allow, where there is one already; the embedded one allows enough."""
    import asyncio

    from freeloop.database import Address, check_budget
    from freeloop.errors import FreeloopError
    from freeloop.resources import find_replicas, plan_budget

    if settings.database_url is None:
        return
    budget = plan_budget(settings, tasks=tasks)
    address = Address(dsn=settings.database_url.get_secret_value(), pooler=settings.database_pooler)
    try:
        asyncio.run(check_budget(address, budget, replicas=find_replicas(settings), within=5.0))
    except FreeloopError as error:
        yield Finding("budget", "FREELOOP_DATABASE_URL", error.title, error.detail)


def check_routes(routes: list[Any], settings: Settings) -> Iterator[Finding]:
    """Yield routes that are sync, and those that nothing ends."""
    from freeloop.gate.declare import AppDefault, read_declaration

    for route in routes:
        endpoint, path = getattr(route, "endpoint", None), getattr(route, "path", "")
        # FastAPI's own routes, such as /docs, are nobody's to change.
        if endpoint is None or getattr(endpoint, "__module__", "").startswith(("fastapi.", "starlette.")):
            continue
        if inspect.isfunction(endpoint) and not inspect.iscoroutinefunction(endpoint):
            yield Finding(
                "sync",
                path,
                f"'{endpoint.__name__}' is a plain def: each request takes one of "
                f"{settings.route_threads} threads while it runs",
                "Write 'async def' and await what waits; or keep it, where it calls what only blocks.",
                "note",
            )
        deadline = read_declaration(endpoint).deadline
        if (settings.deadline if isinstance(deadline, AppDefault) else deadline) is None:
            yield Finding(
                "deadline",
                path,
                "nothing ends a request that hangs",
                "Set FREELOOP_DEADLINE, or declare @deadline(seconds) on the route.",
            )


def check_calls(folder: Path) -> Iterator[Finding]:
    """Yield calls in async functions that block the event loop, by ruff's ASYNC rules. Blocks."""
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        yield Finding("calls", str(folder), _NO_RUFF, "Install it: pip install ruff.", "note")
        return
    options = ("check", "--select", "ASYNC2,ASYNC100,ASYNC110", "--output-format", "json", "--isolated")
    try:
        done = subprocess.run(  # noqa: S603 - the linter, on the folder that was named
            [ruff, *options, "--no-cache", "--exit-zero", str(folder)],
            capture_output=True,
            text=True,
            timeout=_RUFF_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        says = f"ruff was not done within {_RUFF_TIMEOUT:.0f} s"
        yield Finding("calls", str(folder), says, "Name a smaller folder with --app-dir.", "note")
        return
    if done.returncode:
        yield Finding("calls", str(folder), "ruff has failed", done.stderr.strip()[:500], "note")
        return
    for each in json_.loads(done.stdout or "[]"):
        place = f"{each['filename']}:{each['location']['row']}"
        yield Finding(
            "calls",
            place,
            f"{each['code']} {each['message']}",
            "Await its async twin, or give it to a thread: await kit.run_sync(function, …).",
        )
