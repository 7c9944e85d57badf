"""The static site: it is built strictly, finds what is looked for, and loads nothing from elsewhere."""

import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import pytest

from blocks import DOCS, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build it as the command does, of a copy, so that nothing in the checkout is changed."""
    return build(tmp_path_factory.mktemp("site"))


def build(folder, spoil=lambda docs: None, *, fails=False):
    subprocess.run(["cp", "-r", DOCS, ROOT / "zensical.toml", folder], check=True)
    spoil(folder / "docs")
    program = "import sys, pathlib, handbook.generator as it; it.build(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return folder / "build" / "site"


def test_a_search_finds_the_pages(site):
    items = json.loads((site / "search.json").read_text("utf-8"))["items"]

    def find(*words):
        return {
            each["location"].partition("#")[0]
            for each in items
            if all(word in f"{each['title']} {each['text']}".lower() for word in words)
        }

    assert "deploy/" in find("terminationgraceperiodseconds")
    assert "reference/settings/" in find("freeloop_drain_delay")
    assert "tutorial/" in find("migration", "notes")
    assert not find("a word that is nowhere")


class _Loads(HTMLParser):
    """Collects what a page makes the browser load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in {"script", "img", "iframe"} and attributes.get("src"):
            self.found.append(attributes["src"])
        if tag == "link" and attributes.get("rel") != "canonical" and attributes.get("href"):
            self.found.append(attributes["href"])


def test_a_page_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text("utf-8"))
        assert loads.found
        assert not [url for url in loads.found if re.match(r"(?:\w+:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text("utf-8")), sheet


def test_every_page_is_in_the_navigation():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]["nav"]

    def walk(entry):
        if isinstance(entry, str):
            yield entry
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from walk(inner)

    assert sorted(walk(nav)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("link", ["nowhere.md", "operations.md#nowhere", "#nowhere"])
def test_a_dead_link_fails(tmp_path, link):
    def spoil(docs):
        with (docs / "index.md").open("a") as page:
            page.write(f"\n[dead]({link})\n")

    build(tmp_path, spoil, fails=True)
