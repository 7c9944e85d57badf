"""Both languages, both widths, both schemes, the keyboard, and nothing that keeps anybody out."""

import re
import tomllib
from pathlib import Path
from string import Formatter

import pytest

import freeloop.console
from conftest import UPDATES, open_shop, visiting
from freeloop.console.phrases import ENGLISH

CATALOGUE = Path(freeloop.console.__file__).parent / "catalogue"
PAGES = ("now", "requests", "blocks", "tree", "tasks", "database", "upstreams")

RIGHT = (
    "Math.max(...[...document.querySelectorAll('nav a')].map((each) => each.getBoundingClientRect().right))"
)


@pytest.fixture(scope="module")
def shop():
    """Let trouble last for as long as tests here look at it, and for no longer."""
    with open_shop(FREELOOP_DEADLINE=300, FREELOOP_DATABASE_ACQUIRE_TIMEOUT=300) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _trouble(shop):
    """Let every page have something to show."""
    shop.get("/report")
    shop.get("/start/invoice")
    shop.get("/start/import")
    shop.ask("/export", "/wait", "/fail", "/quotes", "/deadlock")


@pytest.mark.parametrize(
    ("width", "scheme", "locale", "title"),
    [
        *((1280, "light", "en-GB", "Requests"), (1280, "dark", "zh-TW", "請求")),
        *((390, "light", "zh-TW", "請求"), (390, "dark", "en-GB", "Requests")),
    ],
)
def test_every_page_in_every_look(visit, width, scheme, locale, title):
    page = visit(width=width, locale=locale, scheme=scheme)
    for name in PAGES:
        page.open(name)
        page.wait_until(f"{UPDATES} >= 1")
        assert page.page.inner_text("header nav a:nth-child(2)") == title
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        assert page.page.evaluate(f"({RIGHT}) <= innerWidth"), f"the link to {name} is out of sight"
        assert page.find_barriers() == [], name


def test_the_language_is_switched_and_stays(visit):
    page = visit()
    page.open("requests?sort=route")
    page.page.click("button[value='zh-TW']")
    page.see("請求", "h1")
    assert "sort=route" in page.page.url
    page.open("blocks")
    page.see("阻塞", "h1")
    assert page.page.get_attribute("html", "lang") == "zh-Hant-TW"
    page.page.click("button[value='en']")
    page.see("Blocks", "h1")


# What a page says itself, and not code, stacks, messages of exceptions or names of tasks.
SAID = """(() => {
    const main = document.querySelector("main").cloneNode(true);
    for (const each of main.querySelectorAll("code, pre, summary.bad, .task, summary b")) each.remove();
    const labels = [...main.querySelectorAll("[aria-label], [data-confirm], [title]")];
    const names = ["aria-label", "data-confirm", "title"];
    const said = labels.flatMap((each) => names.map((name) => each.getAttribute(name)));
    return [main.textContent, ...said].join("\\n");
})()"""


def list_english():
    """Return what English templates say around their fields, where it is more than a word."""
    english = tomllib.loads((CATALOGUE / "en.toml").read_text("utf-8"))
    for templates in (*english.values(), *ENGLISH.values()):
        for template in templates.values():
            for piece in (literal.strip(" .,:;()'") for literal, *_ in Formatter().parse(template)):
                if re.search(r"[a-z] [a-z]", piece):
                    yield piece


def test_a_chinese_page_says_nothing_in_english(visit, shop):
    page, pieces, shown = visit(locale="zh-TW"), {*list_english()}, {}
    assert {"a timer", "held by", "a connection of pool", "is awaited by nobody and kept by nobody"} <= {
        piece.partition(":")[0] for piece in pieces
    }

    def look(name, *parts):
        page.open(name)
        for selector, wanted in parts:
            page.see(wanted, selector)
        shown[name] = page.page.evaluate(SAID)

    look("tasks", ("#queues", "佇列"))
    shop.ask(*["/export?seconds=300"] * 3, *["/orders"] * 2, "/forget?seconds=300", "/family?seconds=300")
    page.open("requests?q=orders")
    page.page.locator("#live-requests a").first.click()
    page.page.wait_for_url("**open=*")
    opened = page.page.url.rpartition("/")[2]
    look(opened, ("#opened .waits", CONNECTION))
    look("now", ("#diagnosis", "連線池「main」已空"))
    look(
        "tree",
        ("details.branch:has-text('/orders')", CONNECTION),
        ("details.branch:has-text('/family')", "計時器"),
        (".deadlock", "占用者："),
        (".sentence.warning", "沒有人 await 它，也沒有人保留它"),
    )
    look("database", ("main", "3 條連線借出 3 條"))
    look("blocks", ("article.block .advice", "改寫成「await asyncio.sleep(seconds)」。"))
    look("upstreams", ("#sources", "quotes"))
    assert len(shown) == len(PAGES)
    for name, text in shown.items():
        assert [piece for piece in pieces if piece in text] == [], name
        assert re.findall(r"(?:[A-Za-z][a-z']* ){2,}[a-z']{2,}", text) == [], name


CONNECTION = "連線池 'main'（3 條借出 3 條）的連線，占用者：/export"


def test_the_keyboard_does_it_all(visit):
    page = visit()
    page.open("now")
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.className") == "skip"
    page.page.keyboard.press("Enter")
    assert page.page.evaluate("document.activeElement.id") == "live"
    page.page.keyboard.press("4")
    page.page.wait_for_url("**/tree")
    page.page.focus("details.branch summary")
    state = page.page.locator("details.branch").first.get_attribute("open")
    page.page.keyboard.press("Enter")
    assert page.page.locator("details.branch").first.get_attribute("open") != state


def test_what_is_typed_is_not_lost_at_an_update(visit):
    page = visit()
    page.open("requests")
    page.page.fill("input[name=q]", "/wa")
    page.wait_updates(2)
    assert page.page.input_value("input[name=q]") == "/wa"
    page.page.press("input[name=q]", "Enter")
    page.page.wait_for_url("**q=%2Fwa**")


def test_a_server_that_has_gone_is_told(visit, browser):
    with open_shop() as other, visiting(browser, other) as make:
        page = make()
        page.expected = (
            "ERR_CONNECTION_REFUSED",
            "ERR_INCOMPLETE_CHUNKED",
            "Failed to load",
            "Failed to fetch",
        )
        page.open("now")
        page.wait_updates(1)
        other.run.process.terminate()
        page.see("no connection", "#state")
