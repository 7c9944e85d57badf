"""``freeloop ps``: what every task of a running process waits for, also where its loop hangs."""

from __future__ import annotations

from typing import Annotated

import typer

from freeloop.cli.failure import readable_failures
from freeloop.cli.progress import progress


def ps(
    process: Annotated[
        str | None,
        typer.Argument(
            metavar="[PID|APP]",
            help="Which one: its process number, its app's name, or a part of its command line.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """Show what each task of a live or hung process waits for; with no PID or APP the only one, or a list."""
    with readable_failures():
        # Imported here, so that 'freeloop --help' answers at once.
        import orjson

        from freeloop.cli.processes import find_running, not_answering
        from freeloop.inspection import ask
        from freeloop.tree.model import read_snapshot
        from freeloop.tree.render import render

        with progress("Looking for processes"):
            _, found = find_running(process)
        if process is None and len(found) > 1:
            if json:
                listed = [{"pid": each.pid, "title": each.title, "silent": each.silent} for each in found]
                typer.echo(orjson.dumps(listed, option=orjson.OPT_INDENT_2))
            else:
                for each in found:
                    typer.echo(f"{each.pid:>8}  {each.title}")
            return
        if found[0].silent:
            raise not_answering(found[0])
        with progress("Asking the process"):
            snapshots = [(each, read_snapshot(ask(each.path, "tree"))) for each in found]
        if json:
            typer.echo(orjson.dumps([snapshot for _, snapshot in snapshots], option=orjson.OPT_INDENT_2))
        else:
            typer.echo("\n\n".join(render(snapshot, name=each.title) for each, snapshot in snapshots))
