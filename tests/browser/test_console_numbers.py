"""The numbers are those of what the test has sent, on a shop that nobody else asks for anything."""

import json
import time

from terminal import Terminal, where

from conftest import open_shop, visiting

BOUND = 30  # seconds that anything may take here


def value(name, least):
    """Return what is true in the browser once a tile's first number is at least that."""
    return f"parseFloat(document.querySelector('#tile-{name} .value')?.textContent) >= {least}"


def seconds(name, least):
    """Return the same of a tile that shows a duration, which stands in ms where it is below 0.1 s."""
    return f"/ s$/.test(document.querySelector('#tile-{name} .value')?.textContent) && {value(name, least)}"


def test_each_request_and_each_error_is_counted_once(visit, shop):
    page = visit()
    page.open("now")
    page.see("Nothing is wrong.", "#diagnosis")
    page.wait_until("document.querySelector('#tile-tasks .value')?.textContent == '0'")  # none waits
    page.see("waiting", "#tile-tasks .below")
    assert [shop.status("/ping") for _ in range(20)] == [200] * 20
    assert [shop.status("/fail") for _ in range(7)] == [500] * 7
    until = time.monotonic() + BOUND
    while (told := count(shop)) != (27, 7):
        assert time.monotonic() < until, told
        time.sleep(0.2)


def count(shop):
    history = json.loads(shop.get("/console/history.json"))
    return sum(history["requests"]), sum(history["errors"])


def test_the_tiles_show_what_is_asked(visit, shop):
    page = visit()
    page.open("now")
    with shop.loaded("/fail", callers=2):
        page.wait_until(value("requests", 1))
        page.wait_until(value("errors", 1))
        page.see("requests failed in the last seconds, most of them /fail", "#diagnosis")
    with shop.loaded("/wait?seconds=0.4", callers=3):
        page.wait_until(seconds("latency", 0.39))  # a timer of uvloop may end 2 ms early
    with shop.loaded("/report?seconds=0.5", pause=0.5):
        page.wait_until(seconds("lag", 0.3))
    shop.ask(*["/wait?seconds=20"] * 3)
    page.wait_until("document.querySelector('#tile-running .value')?.textContent == '3'")
    page.see("no limit is needed", "#tile-running .below")


def test_slow_statements_are_shown_by_name(visit, shop):
    for _ in range(3):
        shop.get("/stock?seconds=0.5")
    page = visit()
    page.open("database")
    page.see("count_stock", "#statements tbody tr")  # the first: none took longer in all
    name, runs, mean, in_all = page.page.locator("#statements tbody tr").first.locator("th, td").all()
    assert (name.inner_text(), runs.inner_text()) == ("count_stock", "3")
    for shown, least in ((mean, 0.5), (in_all, 1.5)):
        number, unit = shown.inner_text().split()
        assert (float(number) >= least, unit) == (True, "s")


def test_a_line_that_holds_a_connection_while_it_waits_is_shown(visit, shop):
    page = visit()
    page.open("database")
    shop.get("/label?seconds=0.3")
    shop.get("/label?seconds=1.2")
    row = page.page.locator("#held-idle tr:has-text('/label')")
    page.see("2", "#held-idle tr:has-text('/label') td:nth-of-type(3)")  # times
    place, route, awaits, _, longest = (cell.inner_text() for cell in row.locator("th, td").all())
    assert place.endswith("in print_label")
    assert (route, awaits) == ("/label", "thread")
    number, unit = longest.split()
    assert (float(number) >= 1.2, unit) == (True, "s")


def test_a_slow_request_is_kept_with_where_its_time_went(visit, shop):
    shop.get("/stock?seconds=1.5")
    shop.get("/wait?seconds=1.5")
    page = visit()
    page.open("requests")
    for route, kind in (("/stock", "sql"), ("/wait", "app")):
        page.see(f"GET {route}", f"#slow tr:has-text('{route}')")
        bar = page.page.locator(f"#slow tr:has-text('{route}') svg.ledger rect.k-{kind}").first
        assert float(bar.get_attribute("width")) > 50  # percent of 1.5 s and what else there was


def test_the_filters_of_a_page_are_those_of_its_twin(shop):
    shop.ask("/wait?seconds=15", "/export?seconds=15")
    shop.get("/start/archive")
    until = time.monotonic() + BOUND
    wanted = {("http", "/wait"), ("http", "/export"), ("task", "archive")}
    while not wanted <= (live := list_live(shop, "")):
        assert time.monotonic() < until, live
        time.sleep(0.2)
    assert list_live(shop, "?kind=task") == {("task", "archive")}
    assert list_live(shop, "?q=/export&kind=http") == {("http", "/export")}
    assert list_live(shop, "?q=/export&kind=task") == set()


def list_live(shop, query):
    found = json.loads(shop.get(f"/console/requests.json{query}"))
    return {(each["kind"], each["route"]) for each in found["live"]}


def test_an_overloaded_route_is_told_with_its_limit(visit, shop):
    for _ in range(30):  # what it takes while nobody waits for the two that serve there
        shop.get("/scarce")
    page = visit()
    page.open("now")
    with shop.loaded("/scarce", callers=30) as statuses, Terminal("top", **where(shop)) as terminal:
        page.see("/scarce is overloaded: ", "#diagnosis")
        page.see("run at a limit of", "#diagnosis [data-code=shedding]")
        page.wait_until(r"/^limit \d+$/.test(document.querySelector('#tile-running .below')?.textContent)")
        page.wait_until(r"/refused: [1-9]/.test(document.querySelector('#tile-errors .below')?.textContent)")
        (limit, refused) = page.wait_until(ROW)
        assert 1 <= limit < 30
        assert refused >= 1
        terminal.see("/scarce is overloaded")
    assert statuses.count(503) >= refused
    assert set(statuses) <= {200, 503}
    with shop.loaded("/scarce"):  # one at a time: no limit is needed any more
        page.see("no limit is needed", "#tile-running .below")


def test_a_limit_of_the_settings_is_told_where_it_refuses(browser):
    with open_shop(FREELOOP_MAX_CONCURRENCY=2) as shop, visiting(browser, shop) as make:
        pages = {
            "FREELOOP_MAX_CONCURRENCY allows": make(),
            "FREELOOP_MAX_CONCURRENCY 的上限": make(locale="zh-TW"),
        }
        for page in pages.values():
            page.open("now")
        shop.ask("/wait", "/wait")
        pages["FREELOOP_MAX_CONCURRENCY allows"].see("2", "#tile-running .value")
        with shop.loaded("/wait") as statuses:
            for said, page in pages.items():
                page.see("/wait", "#diagnosis [data-code=full]")
                page.see(said, "#diagnosis [data-code=full]")
                page.see(said, "#tile-running .below")
        assert set(statuses) == {503}


ROW = """(() => {
    const rows = [...document.querySelectorAll("main table tbody tr")];
    const row = rows.find((each) => each.cells[0].textContent == "/scarce");
    const cells = row && [row.cells[2], row.cells[4]];
    const found = cells && cells.map((cell) => Number(cell.textContent.replace(",", "")));
    return found && found.every((number) => number >= 1) ? found : null;
})()"""
