"""``freeloop settings``: every setting with its value, where it comes from, unit and default."""

from __future__ import annotations

import typer
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table

from freeloop.cli.failure import readable_failures
from freeloop.settings import PREFIX, Settings, display, facts, find_origins, find_unknown, load_settings


def settings() -> None:
    """Show every setting: value, source, unit, default and what is allowed; secrets are masked."""
    with readable_failures():
        current = load_settings()
    origins = find_origins({})
    table = Table("Setting", "Value", "From", "Unit", "Default", "Allowed", show_lines=False, box=None)
    for name, field in Settings.model_fields.items():
        unit, allowed = facts(field)
        default = field.get_default(call_default_factory=True, validated_data={})
        table.add_row(
            PREFIX + name.upper(),
            display(name, getattr(current, name)),
            origins.get(name, "default"),
            unit,
            "" if default is PydanticUndefined else display(name, default),
            allowed,
        )
    # Off a terminal there is no width to fit into: lines stay whole for grep.
    console = Console() if Console().is_terminal else Console(width=400)
    console.print(table)
    for line in find_unknown():
        typer.echo(f"freeloop: {line}", err=True)
