"""The command line: one file a command. May be imported by nobody."""

from __future__ import annotations

import typer

import freeloop
from freeloop.cli.blocks import blocks
from freeloop.cli.doctor import doctor
from freeloop.cli.migrate import migrate
from freeloop.cli.ps import ps
from freeloop.cli.run import run
from freeloop.cli.serve import serve
from freeloop.cli.settings import settings
from freeloop.cli.tasks import tasks
from freeloop.cli.top import top
from freeloop.cli.worker import worker

app = typer.Typer(
    name="freeloop",
    help="Async FastAPI services that stay async.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(run)
app.command()(blocks)
app.command()(doctor)
app.command()(migrate)
app.command()(ps)
app.command()(settings)
app.command()(top)
app.command()(worker)
app.add_typer(tasks, name="tasks")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"freeloop {freeloop.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", is_eager=True, callback=_show_version
    ),
) -> None:
    del version


def main() -> None:
    """Run the command line."""
    app()
