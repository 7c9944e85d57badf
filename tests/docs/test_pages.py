"""Every error, metric and page is documented."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from blocks import read_blocks
from freeloop import errors
from freeloop.errors import FreeloopError
from freeloop.records import RequestRecord
from freeloop.service.app import create_app
from freeloop.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
PAGE_BLOCKS = [block for page in sorted(DOCS.glob("*.md")) for block in read_blocks(page)]


def test_every_error_is_documented_with_its_status():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", (DOCS / "errors.md").read_text(), re.MULTILINE))
    leaves = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, FreeloopError)
        and all(below.__module__ != errors.__name__ for below in kind.__subclasses__())
    }
    assert set(rows) == set(leaves)
    for name, kind in leaves.items():
        assert rows[name] in {str(kind.status), "the start stops"}


def test_the_drawn_tree_names_every_error():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__)) | {"FreeloopError"}
    assert drawn == {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, FreeloopError)
    }


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    assert set(re.findall(r"\]\((\w[\w-]+\.md)\)", index)) == {path.name for path in DOCS.glob("*.md")} - {
        "index.md"
    }


@pytest.fixture
def documented():
    return set(re.findall(r"`(freeloop_\w+)`", (DOCS / "operations.md").read_text()))


async def test_every_metric_is_documented(documented):
    app = await asyncio.to_thread(lambda: create_app(Settings()))  # it looks for its static files
    metrics = app.state.freeloop.metrics
    metrics.observe(RequestRecord("r", "GET", "/", "/", 200, 0.1, ""))
    shown = set(re.findall(r"^# TYPE (freeloop_\w+) ", metrics.render().decode(), re.MULTILINE))
    assert {name for name in shown if not name.endswith("_created")} == documented


def test_the_service_documents_every_operation():
    document = create_app(Settings()).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path}"


@pytest.mark.parametrize("block", PAGE_BLOCKS, ids=str)
def test_every_block_is_run_or_says_why_not(block):
    """Python: test_python.py; commands: test_shell.py and test_walks.py; SQL: by the page's own test."""
    if block.language == "json" and "…" not in block.text:
        json.loads(block.text)
    assert block.reason or block.title or block.language in {"python", "sh", "sql", "json", "text", ""}
    if block.language == "sql" and not block.title:
        assert block.page.name in {"items.md", "deploy.md"}, "write a test that runs it, as theirs do"
