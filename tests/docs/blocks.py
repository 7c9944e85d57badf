"""The code blocks of a page."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Those that are written by hand; test_reference.py holds the others against the code.
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.parent != DOCS / "reference")
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w+)?(?: +title=\"(?P<title>[^\"]*)\")?[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: The page's file.
        line: The line of its first line of code.
        language: Such as ``python``; empty where none is given.
        title: The file that it is; empty where it is none.
        reason: Why it is not run (``<!-- not run: … -->`` before it); empty where it is.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    reason: str

    def __str__(self):
        return f"{place_of(self.page)}:{self.line}"


def place_of(page):
    """Return where a page is, as links in docs/ name it; of one that is elsewhere, its name."""
    return page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else page.name


def read_blocks(page):
    """Return the blocks of a page, in order."""
    content = page.read_text("utf-8")
    return [
        Block(
            page,
            content.count("\n", 0, found.start("text")) + 1,
            found["language"] or "",
            found["title"] or "",
            found["text"],
            found["reason"] or "",
        )
        for found in _FENCE.finditer(content)
    ]
