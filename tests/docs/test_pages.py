"""Every error, metric and page is documented."""

import asyncio
import json
import re

import pytest
from test_walks import WALKS

from blocks import DOCS, PAGES, place_of, read_blocks
from freeloop import Source, errors
from freeloop.errors import FreeloopError
from freeloop.records import RequestRecord
from freeloop.service.app import create_app
from freeloop.settings import Settings
from freeloop.source import OPTIONS

PAGE_BLOCKS = [block for page in PAGES for block in read_blocks(page)]
# Of blocks of text, which nobody types: what they are, and what holds them against the code, by the first
# words of each. Said here and not on the page, which is for readers.
SHOWN = {
    ("architecture.md", "client → gate"): "a drawing",
    ("await-tree.md", "freeloop ps"): "commands; test_shell.py parses each line",
    ("await-tree.md", "4242 Shop"): "what a process may answer",
    ("blocking.md", "the event loop was blocked"): "what the log may say",
    ("blocking.md", "@pytest.mark.no_blocking"): "marks; tests/unit/test_watch_plugin.py runs both",
    ("database.md", "freeloop: Start refused"): "what the start says; stages.py has it refused with this sum",
    ("deploys.md", "freeloop run main:app"): "a command; test_shell.py parses it",
}
LAYERS = sorted((DOCS / "external-data").glob("*.md"))


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


def test_every_layer_is_in_the_overview():
    overview = (DOCS / "external-data.md").read_text("utf-8")
    assert set(re.findall(r"\]\(external-data/([\w-]+\.md)\)", overview)) == {path.name for path in LAYERS}


@pytest.mark.parametrize("page", LAYERS, ids=lambda page: page.name)
def test_a_layers_page_answers_what_each_of_them_does(page):
    headings = re.findall(r"^## (.+)$", page.read_text("utf-8"), re.MULTILINE)
    expected = [
        r"When to switch (it|them) on",
        r"The defaults?, and why",
        "How to set it",
        "What a caller sees",
        "Where to see it",
    ]
    assert len(headings) == len(expected)
    assert all(map(re.fullmatch, expected, headings)), headings


def test_every_option_of_a_source_has_its_default_with_the_reason():
    rows = [
        row
        for page in LAYERS
        for row in re.findall(
            r"^\| `([a-z_]+)` \| `([^`]+)`[^|]* \| (.+) \|$", page.read_text("utf-8"), re.MULTILINE
        )
    ]
    unknown = Source()
    assert sorted((option, default) for option, default, _ in rows) == sorted(
        (option, repr(getattr(unknown, option))) for option in OPTIONS if option != "url"
    )


def test_the_layers_pages_name_each_of_their_metrics(documented):
    texts = [page.read_text("utf-8") for page in LAYERS]
    named = {name for text in texts for name in re.findall(r"`(freeloop_\w+)[`{]", text)}
    assert named <= documented
    assert {name for name in documented if name.startswith("freeloop_upstream_")} <= named


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


def reason_of(block):
    """Return why nothing runs a block of text: said before it, or above; empty where nobody says it."""
    place = place_of(block.page)
    said = [why for (page, words), why in SHOWN.items() if page == place and block.text.startswith(words)]
    return block.reason or "".join(said)


def is_output(block):
    """Whether it is what a command of a page that is walked through has to print."""
    if place_of(block.page) not in WALKS:
        return False
    blocks = read_blocks(block.page)
    before = blocks[blocks.index(block) - 1] if blocks.index(block) else None
    return before is not None and before.language == "sh" and not before.reason


@pytest.mark.parametrize("block", PAGE_BLOCKS, ids=str)
def test_every_block_is_run_or_says_why_not(block):
    """Python: test_python.py; commands: test_shell.py and test_walks.py; SQL: by the page's own test."""
    if block.language == "json" and "…" not in block.text:
        json.loads(block.text)
    if block.language in {"text", ""} and not block.title:
        assert reason_of(block) or is_output(block), "say <!-- not run: reason --> before the block"
    else:
        assert block.reason or block.title or block.language in {"python", "sh", "sql", "json"}
    if block.language == "sql" and not block.title:
        assert block.page.name in {"items.md", "deploy.md"}, "write a test that runs it, as theirs do"


@pytest.mark.parametrize("fence", ["```", "```text"])
@pytest.mark.parametrize(
    ("before", "name", "accepted"),
    [
        ("", "page.md", False),
        ("```sh\nfreeloop ps\n```\n\n", "page.md", False),  # nobody compares what it prints
        ("<!-- not run: a drawing -->\n", "page.md", True),
        ("```sh\nfreeloop ps\n```\n\n", "tutorial.md", True),
        ("", "tutorial.md", False),
    ],
)
def test_a_block_of_text_without_a_reason_is_found(tmp_path, fence, before, name, accepted):
    page = tmp_path / name
    page.write_text(f"{before}{fence}\nclient → gate\n```\n", "utf-8")
    block = read_blocks(page)[-1]
    assert bool(reason_of(block) or is_output(block)) is accepted


def test_what_is_said_of_a_block_is_said_of_one_that_is_there():
    texts = [(place_of(block.page), block.text) for block in PAGE_BLOCKS if not block.reason]
    for page, words in SHOWN:
        assert any(place == page and text.startswith(words) for place, text in texts), (page, words)
