"""Several processes appear as one, with a switch for each."""

import contextlib
import http.client
import json
import os
import signal
import time

import pytest
from terminal import Terminal, where

from conftest import open_shop


@pytest.fixture(scope="module")
def shop():
    with open_shop("--workers", "2") as running:
        yield running


def test_two_workers_are_one_and_each(visit, shop):
    page = visit()
    page.open("now")
    page.wait_updates(1)
    processes = wait_processes(lambda: shop.twin("now"))
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


def test_a_worker_whose_loop_hangs_is_told_by_the_other(visit, shop, tmp_path):
    over = tmp_path / "over"
    try:
        shop.ask(f"/hang?until={over}")
        hung = wait_hung(shop)
        assert hung in shop.twin("now")["processes"]
        page = visit()  # only who does not hang takes its connection
        page.open("now")
        page.see(f"The event loop of process {hung} hangs", "#diagnosis")
        page.open("tree")
        page.see("The loop hangs.", f"#p{hung}")
        page.see("in hang", f"#p{hung} pre")
        with Terminal("top", **where(shop)) as terminal:
            terminal.see(f"The event loop of process {hung} hangs")
        page.open("now")
        page.see(f"The event loop of process {hung} hangs", "#diagnosis")
    finally:
        over.touch()
    page.wait_until("!document.querySelector('[data-code=hung]')")


def test_a_worker_that_does_not_answer_is_told_by_the_other(visit, shop):
    connection = http.client.HTTPConnection("127.0.0.1", shop.run.port, timeout=30)
    with contextlib.closing(connection):
        teller = get(connection, "/process")
        (stopped,) = {*wait_processes(lambda: get(connection, "/console/now.json"))} - {teller}
        os.kill(stopped, signal.SIGSTOP)
        try:
            page = visit()  # only who is not stopped takes its connection
            page.open("now")
            page.see(f"Process {stopped} does not answer.", "#diagnosis [data-code=silent]")
            page.page.select_option("#process", str(stopped))  # it is still one of them
            page.page.wait_for_url(f"**process={stopped}*")
            page.see(f"Process {stopped} does not answer.", "#diagnosis [data-code=silent]")
            with Terminal("top", **where(shop)) as terminal:
                terminal.see(f"Process {stopped} does not answer.")
        finally:
            os.kill(stopped, signal.SIGCONT)
        page.wait_until("!document.querySelector('[data-code=silent]')")


def get(connection, path):
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def wait_processes(ask):
    """Return both processes, once the one that answers knows the other."""
    until = time.monotonic() + 30
    while len(processes := ask()["processes"]) < 2:
        assert time.monotonic() < until, processes
        time.sleep(0.1)
    return processes


def wait_hung(shop):
    """Return the process that the other one says hangs."""
    until, sentences = time.monotonic() + 30, None
    while time.monotonic() < until:
        with contextlib.suppress(OSError):  # the one that hangs has just taken the connection
            sentences = json.loads(shop.get("/console/now.json", timeout=5))["sentences"]
            if hung := [each["values"]["process"] for each in sentences if each["code"] == "hung"]:
                return hung[0]
    raise AssertionError(sentences)
