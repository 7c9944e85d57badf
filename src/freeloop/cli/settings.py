"""``freeloop settings``: every setting with its value, where it comes from, unit and default."""

from __future__ import annotations

from typing import Annotated

import typer

from freeloop.cli.failure import readable_failures


def settings(
    json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """Show every setting: value, source, unit, default and what is allowed; secrets are masked."""
    # Imported here, so that 'freeloop --help' answers at once.
    import orjson
    from pydantic_core import PydanticUndefined
    from rich.console import Console
    from rich.table import Table

    from freeloop.settings import PREFIX, Settings, display, facts, find_origins, find_unknown, load_settings

    with readable_failures():
        current = load_settings()
    origins = find_origins({})
    rows = []
    for name, field in Settings.model_fields.items():
        unit, allowed = facts(field)
        default = field.get_default(call_default_factory=True, validated_data={})
        rows.append(
            {
                "setting": PREFIX + name.upper(),
                "value": display(name, getattr(current, name)),
                "from": origins.get(name, "default"),
                "unit": unit,
                "default": "" if default is PydanticUndefined else display(name, default),
                "allowed": allowed,
            }
        )
    if json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    else:
        table = Table(*(column.capitalize() for column in rows[0]), show_lines=False, box=None)
        for row in rows:
            table.add_row(*row.values())
        # Off a terminal there is no width to fit into: lines stay whole for grep.
        console = Console() if Console().is_terminal else Console(width=400)
        console.print(table)
    for line in find_unknown():
        typer.echo(f"freeloop: {line}", err=True)
