"""How a command fails: one readable line per mistake on standard error, exit code 1, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from freeloop.errors import FreeloopError, SettingsError


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn an error of ours into its lines and exit code 1."""
    try:
        yield
    except SettingsError as error:
        for mistake in error.mistakes:
            typer.echo(f"freeloop: {mistake}", err=True)
        raise typer.Exit(1) from None
    except FreeloopError as error:
        typer.echo(f"freeloop: {error.title}: {error.detail}", err=True)
        raise typer.Exit(1) from None
