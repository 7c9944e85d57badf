"""``freeloop blocks``: what blocks the event loop of a running process."""

from __future__ import annotations

from typing import Annotated

import typer

from freeloop.cli.failure import readable_failures
from freeloop.cli.progress import progress


def blocks(
    process: Annotated[
        str | None,
        typer.Argument(metavar="[PID|APP]", help="Which one: its process number, or its app's name."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """Show what has blocked the event loop of a running app, the most costly first."""
    with readable_failures():
        import orjson

        from freeloop.cli.processes import ask_app, find_app
        from freeloop.tree.waits import say_seconds

        with progress("Asking the processes"):
            sockets, _ = find_app(process).find()
            answer = ask_app(sockets, "blocks")
        if json:
            typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2))
            return
        if not answer.blocks:
            nothing = "Nothing has blocked the event loop."
            typer.echo(nothing if answer.watched else "Nobody looks: FREELOOP_WATCH is off.")
        for block in answer.blocks:
            now = "blocks now" if block.goes_on else "at worst"
            typer.echo(
                f"{block.place}\n    {say_seconds(block.longest)} {now}, {block.times:,} times, "
                f"{say_seconds(block.seconds)} in all; {block.cause}; {block.route or '(no route)'}\n"
                f"    {block.advice}\n"
            )
