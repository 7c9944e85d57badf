"""Templates, words and files of the console: read once, at the first look, in a thread."""

from __future__ import annotations

import mimetypes
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from freeloop.console.pages import PAGES
from freeloop.console.texts import LANGUAGES, Texts, load_texts, say_number, say_time
from freeloop.ledger import KINDS
from freeloop.tree.waits import say_seconds

_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class File:
    """A file that browsers ask for."""

    content: bytes
    type: str


class Renderer:
    """Makes HTML.

    Args:
        title: The app's name.

    Attributes:
        files: What is below ``/static``, by path.
        ready: Whether it was loaded.
    """

    def __init__(self, title: str) -> None:
        self.files: dict[str, File] = {}
        self.ready = False
        self._title = title
        self._templates: Any = None
        self._texts: dict[str, Texts] = {}
        self._prefixes = re.compile("")

    def load(self) -> None:
        """Read all files. Blocks."""
        # Imported here: a process that nobody looks at loads no template engine.
        from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415

        templates = {each.name: each.read_text("utf-8") for each in (_HERE / "templates").glob("*.html")}
        environment = Environment(
            loader=DictLoader(templates),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        environment.filters |= {
            "seconds": say_seconds,
            "clock": say_time,
            "number": say_number,
            "share": share,
        }
        environment.globals |= {
            "pages": tuple(PAGES),
            "languages": LANGUAGES,
            "kinds": KINDS,
            "title": self._title,
            "version": version("freeloop"),
        }
        for name in templates:
            environment.get_template(name)
        static = _HERE / "static"
        self.files = {
            path.relative_to(static).as_posix(): File(
                path.read_bytes(), mimetypes.guess_type(path.name)[0] or "text/plain"
            )
            for path in static.rglob("*")
            if path.is_file()
        }
        self._prefixes = find_prefixes()
        self._texts = {language: load_texts(language) for language in LANGUAGES}
        self._templates = environment
        self.ready = True

    def render(self, template: str, *, language: str, **values: object) -> str:
        """Render a template in a language."""
        found: str = self._templates.get_template(template).render(
            t=self._texts[language], language=language, **values
        )
        return self._prefixes.sub("", found)


def find_prefixes() -> re.Pattern[str]:
    """Return what a line of code need not be told by: where the app, its packages and Python are."""
    folders = {str(Path.cwd()), *sys.path} - {"", "/"}
    either = "|".join(re.escape(folder) for folder in sorted(folders, key=len, reverse=True))
    return re.compile(rf"(?<![\w/])(?:{either})/(?=[^\s\"<>&]*\.py:\d)")


def share(part: float | None, whole: float | None) -> int:
    """Return a part of a whole in percent, 0 to 100: the class of a bar's width."""
    return min(100, max(0, round(100 * (part or 0.0) / whole))) if whole else 0
