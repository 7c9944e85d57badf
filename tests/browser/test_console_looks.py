"""Both languages, both widths, both schemes, the keyboard, and nothing that keeps anybody out."""

import pytest

from conftest import UPDATES, open_shop, visiting

PAGES = ("now", "requests", "blocks", "tree", "tasks", "database", "upstreams")

RIGHT = (
    "Math.max(...[...document.querySelectorAll('nav a')].map((each) => each.getBoundingClientRect().right))"
)


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
