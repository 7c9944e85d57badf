"""docs/reference/settings.md."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from freeloop.settings import PREFIX, Settings, display, facts
from handbook.markdown import code, page, prose, table
from handbook.undocumented import say

INTRODUCTION = (
    "Environment variables, a `.env` file, and flags of the commands, each overriding the one before. "
    "`freeloop settings` shows their values and where these come from. A wrong value stops the start with a "
    "line that says what is allowed. [Operations](../operations.md) says what they are good for."
)


def render(settings: type[BaseSettings] = Settings) -> str:
    """Return the page.

    Raises:
        Undocumented: A setting has no description, or says nothing of what is allowed.
    """
    rows = []
    for name, field in settings.model_fields.items():
        variable = PREFIX + name.upper()
        unit, allowed = facts(field)
        where = "give it one in src/freeloop/settings.py"
        rows.append(
            [
                code(variable),
                # What depends on the user is no constant: `freeloop settings` shows it.
                "depends on the user"
                if name.endswith("_dir")
                else code(display(name, field.get_default(call_default_factory=True))),
                unit,
                say(allowed, f"what the setting {variable} may be", where),
                prose(say(field.description, f"the setting {variable}", where)),
            ]
        )
    return page(
        "Settings", INTRODUCTION, table(["Setting", "Default", "Unit", "Allowed", "What it is"], rows)
    )
