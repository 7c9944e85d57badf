"""``freeloop top``: the console's page Now and its requests, live in a terminal."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from freeloop.cli.failure import readable_failures
from freeloop.cli.progress import progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from freeloop.console.texts import Texts
    from freeloop.insights.answers import RequestsAnswer, Snapshot

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_EVERY: Final = 1.0  # seconds
_COLOURS: Final = {"bad": "bold red", "warning": "yellow"}


def top(
    process: Annotated[
        str | None,
        typer.Argument(metavar="[PID|APP]", help="Which one: its process number, or its app's name."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print it once, as JSON.")] = False,
) -> None:
    """Show live what a running app does, and what is wrong; q or Ctrl-C ends it."""
    with readable_failures():
        import orjson
        from rich.console import Console
        from rich.live import Live

        from freeloop.cli.keys import Keys
        from freeloop.cli.processes import ask_app, find_app, find_deadlocks
        from freeloop.console.texts import load_texts
        from freeloop.insights import diagnose
        from freeloop.insights.answers import RequestsAnswer, Snapshot

        with progress("Looking for processes"):
            app = find_app(process)
        texts = load_texts("en")

        def look() -> tuple[Snapshot, RequestsAnswer]:
            sockets, silent = app.find()
            if not sockets:
                return Snapshot(silent=silent), RequestsAnswer()
            snapshot = replace(ask_app(sockets, "now"), deadlocks=find_deadlocks(sockets), silent=silent)
            return snapshot, ask_app(sockets, "requests")

        with progress("Asking the processes"):
            snapshot, requests = look()
        if json:
            found = {"sentences": diagnose(snapshot), "snapshot": snapshot, "requests": requests}
            typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
        elif once or not Console().is_terminal:
            Console().print(draw(texts, snapshot, requests, rows=20))
        else:
            with suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as live, Keys() as keys:
                while True:
                    rows = max(5, live.console.height - 14)
                    live.update(draw(texts, *look(), rows=rows), refresh=True)
                    if keys.wait(_EVERY) in {"q", "Q"}:
                        return


def draw(texts: Texts, snapshot: Snapshot, requests: RequestsAnswer, *, rows: int) -> RenderableType:
    """Return the view."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from freeloop.console.texts import say_number
    from freeloop.insights import diagnose
    from freeloop.tree.waits import say_seconds

    sentences = [
        Text(texts(f"diagnosis.{each.code}", **each.values), style=_COLOURS[each.severity])
        for each in diagnose(snapshot)
    ] or [Text(texts("now.well"), style="green")]
    numbers = Table.grid(padding=(0, 2))
    if snapshot.samples:
        last = snapshot.samples[-1]
        for title, value, column in (
            (texts("now.requests"), f"{last.requests:,}/s", "requests"),
            ("p99", say_seconds(last.p99), "p99"),
            (texts("now.errors"), f"{last.errors:,}/s", "errors"),
            (texts("common.refused"), f"{last.shed:,}/s", "shed"),
            (
                texts("now.running"),
                f"{last.running:,} of {say_number(last.limit) if last.limit else '∞'}",
                "running",
            ),
            (texts("now.lag"), say_seconds(last.lag), "lag"),
            (texts("now.pool"), f"{last.lent} of {last.pool}, {last.pool_waiting} wait", "lent"),
            (texts("now.tasks"), f"{say_number(last.tasks)} wait", "tasks"),
        ):
            numbers.add_row(
                title, value, Text(spark([getattr(each, column) for each in snapshot.samples]), style="cyan")
            )
    live = Table(
        texts("common.route"),
        texts("requests.for"),
        texts("requests.ledger"),
        texts("requests.leases"),
        box=None,
        header_style="dim",
    )
    for scope in requests.live[:rows]:
        spent = sorted(scope.times.items(), key=lambda item: -item[1])[:3]
        live.add_row(
            scope.route or "(none)",
            say_seconds(scope.seconds),
            ", ".join(
                f"{texts(f'kinds.{kind}')} {say_seconds(seconds)}" for kind, seconds in spent if seconds
            ),
            ", ".join(lease.kind for lease in scope.leases[:3]),
        )
    left = requests.running - min(rows, len(requests.live))
    return Group(
        *sentences, "", numbers, "", live, Text(f"and {left:,} more" if left > 0 else "", style="dim")
    )


def spark(values: list[Any]) -> str:
    """Draw numbers as a line of blocks; what is not known is a space."""
    most = max((each for each in values if each is not None), default=0) or 1
    return "".join(
        " " if each is None else _SPARKS[round(each / most * (len(_SPARKS) - 1))] for each in values
    )
