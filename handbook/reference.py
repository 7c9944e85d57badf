"""The reference pages, and which of them are no longer what the code says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from handbook import api_page, commands_page, errors_page, metrics_page, settings_page

FOLDER: Final = Path(__file__).parents[1] / "docs" / "reference"
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "settings.md": settings_page.render,
    "commands.md": commands_page.render,
    "errors.md": errors_page.render,
    "metrics.md": metrics_page.render,
    "api.md": api_page.render,
}


def write(folder: Path = FOLDER) -> list[str]:
    """Write the pages that have changed; return their names."""
    changed = []
    for name, render in PAGES.items():
        path, text = folder / name, render()
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            changed.append(name)
    return changed
