"""docs/reference/commands.md."""

from __future__ import annotations

from typing import Any

import typer
import typer.main

from freeloop.cli import app
from handbook.markdown import code, page, prose, table
from handbook.undocumented import say

INTRODUCTION = (
    "In a checkout, `python3 run.py` takes the place of `freeloop`. Each command reads the "
    "[settings](settings.md); a flag has the last word. Exit code 0: done; 1: refused or failed, with one "
    "line on standard error; 2: wrong usage. A flag without a default takes that of its setting."
)
_OWN_HELP = {"help", "install_completion", "show_completion"}


def render(commands: typer.Typer = app) -> str:
    """Return the page.

    Raises:
        Undocumented: A command, an argument or an option has no help.
    """
    # Typer brings a click of its own, whose types it does not export.
    return page("Commands", INTRODUCTION, *_describe("freeloop", typer.main.get_command(commands)))


def _describe(name: str, command: Any) -> list[str]:  # noqa: ANN401 - as above
    where = "write it into src/freeloop/cli/"
    parameters = [each for each in command.params if each.name not in _OWN_HELP]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    below = getattr(command, "commands", {})
    usage = " ".join([name, *map(_place, arguments), *(["COMMAND"] if below else [])])
    parts = [f"## `{usage}`", prose(say(command.help, f"the command '{name}'", where))]
    rows = []
    for each in parameters:
        spelled = _place(each) if each in arguments else ", ".join([*each.opts, *each.secondary_opts])
        said = prose(say(each.help, f"{spelled} of '{name}'", where))
        rows.append(
            [code(spelled), _default(each), said + (f" Also `{each.envvar}`." if each.envvar else "")]
        )
    if rows:
        parts.append(table(["", "Default", "What it is"], rows))
    for inner, found in below.items():
        parts += _describe(f"{name} {inner}", found)
    return parts


def _place(argument: Any) -> str:  # noqa: ANN401 - as above
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def _default(parameter: Any) -> str:  # noqa: ANN401 - as above
    if parameter.required:
        return "needed"
    if parameter.default is None or callable(parameter.default):
        return ""
    if isinstance(parameter.default, bool):
        return "yes" if parameter.default else "no"
    return code(parameter.default)
