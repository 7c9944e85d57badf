"""Each page shows the truth of a trouble that was made for it, and changes by itself, while others ask."""

import json
import re

import pytest


@pytest.fixture(scope="module", autouse=True)
def _load(shop):
    with shop.loaded("/ping", callers=2):
        yield


def test_the_charts_grow_by_themselves(visit, shop):
    page = visit()
    page.open("now")
    page.page.wait_for_selector("#tile-requests canvas")
    assert page.page.locator(".chart canvas").count() == 8
    first = page.wait_until("document.documentElement.dataset.sample")
    page.wait_until(f"Number(document.documentElement.dataset.sample) >= {int(first) + 2}")
    history = json.loads(shop.get("/console/history.json"))
    assert len(history["at"]) == len(history["requests"]) >= 3
    assert history["at"] == sorted(history["at"])


def test_a_blocked_loop(visit, shop):
    page = visit()
    page.open("now")
    shop.get("/report")
    page.see("/report blocked the event loop for", "#diagnosis")
    page.page.click("#diagnosis a:has-text('/report')")
    page.see("shop.py", "article.block h2")
    page.see("/report", "article.block")
    page.see("asyncio.sleep", "article.block .advice")
    page.page.click("article.block summary")
    page.see("in report", "article.block pre")
    page.wait_updates(0)
    assert page.page.locator("article.block details").first.get_attribute("open") is not None


def test_what_blocked_for_longest_in_all_stands_first_with_its_cause(visit, shop):
    shop.get("/count?seconds=0.5")
    shop.get("/audit?seconds=3")  # longer than all that other tests here block for
    page = visit()
    page.open("blocks")
    page.wait_until(BLOCKS + ".some(([place]) => place.endsWith('in count'))")
    (first, cause), *others = page.page.evaluate(BLOCKS)
    assert first.endswith("in audit")
    assert "waits without await" in cause
    (computing,) = [cause for place, cause in others if place.endswith("in count")]
    assert "computes" in computing or "holds the GIL" in computing  # which, is not sure on a busy machine
    found = shop.twin("blocks")["blocks"]
    assert [each["seconds"] for each in found] == sorted((each["seconds"] for each in found), reverse=True)


BLOCKS = """[...document.querySelectorAll("article.block")].map((block) =>
    [block.querySelector("h2").textContent.trim(), block.querySelector("p").textContent])"""


def test_an_empty_pool(visit, shop):
    page = visit()
    page.open("now")
    shop.ask("/export?seconds=12", "/export?seconds=12", "/export?seconds=12")
    page.wait_until("document.querySelector('#tile-pool .value')?.textContent == '3 / 3'")
    shop.ask("/orders", "/orders")
    page.see("The pool 'main' is empty: /export holds 3 of 3 connections, longest", "#diagnosis")
    page.open("database")
    page.see("3 of 3 connections lent", "section.panel")
    page.see("callers wait", "section.panel")
    page.see("shop.py", "section.panel table")
    page.open("requests?sort=connection")
    page.see("/orders", "#live-requests tbody tr")
    page.open("requests?q=/export")
    page.page.locator("#live-requests a").first.click()
    page.see("connection main", "#opened ul.plain")  # what it has borrowed, and the line that did
    page.see("in export", "#opened ul.plain code")
    shop.wait()
    page.open("now")
    page.wait_until("document.querySelector('#tile-pool .value')?.textContent == '0 / 3'")


def test_a_request_that_is_opened_and_cancelled(visit, shop):
    page = visit()
    page.page.on("dialog", lambda dialog: dialog.accept())
    shop.ask("/wait")
    page.open("requests?q=/wait")
    page.page.click("#live-requests a:has-text('/wait')")
    page.see("a timer", "#opened")
    page.see("shop.py", "#opened")
    assert re.search(r"open=\d+", page.page.url)
    page.page.click("#opened button:has-text('Cancel it')")
    page.see("This one has ended.", "#gone")
    shop.logged("cancelled by hand", route="/wait", by="127.0.0.1")
    shop.wait()
    assert "/wait was cancelled by hand" in shop.answers[-1]
    page.open("requests?q=/wait")
    page.see("GET /wait", "#failed tbody")
    page.see("cancelled by hand", "#failed tbody")


def test_an_opened_request_shows_its_child_tasks(visit, shop):
    shop.ask("/family")
    page = visit()
    page.open("requests?q=/family")
    page.page.click("#live-requests a:has-text('/family')")
    page.see("bring_up", "#opened")
    assert page.page.inner_text("#opened").count("bring_up") >= 2


def test_a_task_that_nobody_keeps_is_told_above_the_tree(visit, shop):
    shop.ask("/forget")
    page = visit()
    page.open("tree")
    page.see("unkept", ".sentence.warning")
    page.see("is awaited by nobody and kept by nobody", ".sentence.warning")
    (tree,) = shop.twin("tree")["trees"]
    assert "unkept" in [each["lint"] for each in tree["findings"]]


def test_a_deadlock(visit, shop):
    shop.ask("/deadlock")
    page = visit()
    page.open("now")
    page.see("Deadlock: ", "#diagnosis")
    page.open("tree")
    page.see("Deadlock of 2 tasks", ".deadlock")
    page.see("shop.py", ".deadlock")
    page.see("/deadlock", "details.branch:has-text('/deadlock')")
    page.page.fill("input[name=q]", "no such thing")
    page.page.press("input[name=q]", "Enter")
    page.see("No task fits.")
    assert "q=no" in page.page.url


def test_an_open_breaker(visit, shop):
    page = visit()
    page.open("now")
    for _ in range(25):
        shop.ask("/quotes")
    page.see("quotes fails and is left alone", "#diagnosis")
    page.see("requests failed in the last seconds, most of them /quotes", "#diagnosis")
    page.open("upstreams")
    page.see("quotes", "#sources")
    page.page.wait_for_selector("#sources .breaker.open, #sources .breaker.half-open")
    page.open("now")
    page.see("1", "#tile-breakers .value")


def test_a_failing_task_is_shown_and_tried_again(visit, shop):
    id_ = json.loads(shop.get("/start/invoice"))
    page = visit()
    page.open("tasks")
    page.see("ConnectionRefusedError: no printer for invoice 7", f"#fail-{id_}")
    page.page.click(f"#fail-{id_} summary")
    page.see("in send_invoice", f"#fail-{id_} pre")
    page.open("now")
    page.see("The task send_invoice failed", "#diagnosis")
    page.open("tasks")
    page.page.click(f"#fail-{id_} button")
    shop.logged("task: retry by hand", task_id=id_, done=True, by="127.0.0.1")
    page.see("attempt 2", f"#fail-{id_}")


def test_a_running_task_shows_its_progress_and_is_cancelled(visit, shop):
    id_ = json.loads(shop.get("/start/import"))
    page = visit()
    page.open("tasks")
    page.see("100 / 400 reading", f"#run-{id_}")
    page.page.click(f"#run-{id_} button")
    page.see("Cancelled", f"#r-{id_}")
    shop.logged("task: cancel by hand", task_id=id_, done=True, by="127.0.0.1")


def test_a_task_that_waits_for_its_time_runs_now(visit, shop):
    id_ = json.loads(shop.get("/start/remind?delay=3600"))
    page = visit()
    page.open("tasks?name=remind")
    page.see("Waiting", f"#r-{id_}")
    page.page.click(f"#r-{id_} button:has-text('Run now')")
    shop.logged("task: run by hand", task_id=id_, done=True, by="127.0.0.1")
    page.see("Succeeded", f"#r-{id_}")


def test_tasks_are_counted_by_name_and_their_workers_are_named(visit, shop):
    running = json.loads(shop.get("/start/archive"))
    later = [json.loads(shop.get("/start/archive?delay=3600")) for _ in range(2)]
    page = visit()
    page.open("tasks")
    page.wait_until(QUEUE + " == 'archive archive 1 0 2'")  # name, queue, running, waiting, later
    page.see(str(shop.run.process.pid), "section:has(> h2:text-is('Workers'))")
    page.page.click(f"#run-{running} button")
    for id_ in later:
        page.page.click(f"#r-{id_} button:has-text('Cancel')")
    page.wait_until(QUEUE + " == 'archive archive 0 0 0'")


QUEUE = """(() => {
    const row = [...document.querySelectorAll("#queues tbody tr")].find(
        (each) => each.cells[0].textContent == "archive");
    return row && [...row.cells].map((cell) => cell.textContent.trim()).join(" ");
})()"""


def test_schedules_are_shown(visit):
    page = visit()
    page.open("tasks")
    page.see("nightly", "#schedules")
    page.see("0 3 * * *", "#schedules")
    page.see("03:00:00", "#schedules")


@pytest.mark.parametrize(
    ("page", "key"),
    [
        *(("now", "sentences"), ("requests", "live"), ("blocks", "blocks"), ("tree", "trees")),
        *(("tasks", "answer"), ("database", "pools"), ("upstreams", "sources")),
    ],
)
def test_every_page_has_a_twin(shop, page, key):
    by_name = json.loads(shop.get(f"/console/{page}.json"))
    by_format = json.loads(shop.get(f"/console/{page}?format=json"))
    assert key in by_name
    assert by_name.keys() == by_format.keys()
    assert by_name["processes"] == [shop.run.process.pid]
