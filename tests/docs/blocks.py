"""The code blocks of a page."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
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
        return f"{self.page.name}:{self.line}"


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
