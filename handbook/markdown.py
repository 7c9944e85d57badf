"""Pieces of Markdown: tables, and docstrings as pages show them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Final

NOTICE: Final = (
    "<!-- Written by `python3 run.py docs` from the code: change it there. -->\n"  # not into a heading's way
)
_ROLE: Final = re.compile(r":\w+:`~?\.?([^`]+)`")
_LITERAL: Final = re.compile(r"(?<!`)``(?!`)(.+?)(?<!`)``(?!`)", re.DOTALL)
_EXAMPLE: Final = re.compile(r"^(.*?):?:\n\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)


def page(title: str, introduction: str, *parts: str) -> str:
    """Return a whole page."""
    return (
        "\n\n".join([NOTICE + f"# {title}", introduction, *(part.strip() for part in parts if part)]) + "\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells may hold any text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return a value as code; nothing for an empty text."""
    return f"`{value}`" if str(value) else ""


def prose(text: str) -> str:
    """Return a docstring's text as Markdown: ours have the literals and roles of reStructuredText."""
    text = _EXAMPLE.sub(_fence, text)
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", text))


def _fence(found: re.Match[str]) -> str:
    before = f"{found[1]}:\n\n" if found[1].strip() else ""
    return f"{before}```python\n{textwrap.dedent(found[2]).strip()}\n```\n\n"
