"""Several processes appear as one, with a switch for each."""

import json

import pytest

from conftest import open_shop


@pytest.fixture(scope="module")
def shop():
    with open_shop("--workers", "2") as running:
        yield running


def test_two_workers_are_one_and_each(visit, shop):
    page = visit()
    page.open("now")
    page.wait_updates(1)
    processes = json.loads(shop.get("/console/now.json"))["processes"]
    assert len(processes) == 2
    page.see("All 2 processes", "#process")
    page.wait_until("document.querySelector('#tile-pool .value')?.textContent == '0 / 6'")
    page.page.select_option("#process", str(processes[1]))
    page.page.wait_for_url(f"**process={processes[1]}*")
    page.wait_until("document.querySelector('#tile-pool .value')?.textContent == '0 / 3'")


def test_a_request_of_either_is_cancelled_from_either(visit, shop):
    page = visit()
    page.page.on("dialog", lambda dialog: dialog.accept())
    for path in ("/wait?number=1", "/wait?number=2", "/wait?number=3", "/wait?number=4"):
        shop.ask(path)
    for left in (3, 2, 1, 0):
        page.open("requests?q=/wait")
        page.wait_until(f"document.querySelectorAll('#live-requests a').length == {left + 1}")
        page.page.locator("#live-requests a").first.click()
        page.page.click("#opened button:has-text('Cancel it')")
        page.see("This one has ended.", "#gone")
