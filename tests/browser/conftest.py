"""A real process under load, and Debian's Chromium that looks at its console."""

import collections
import contextlib
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from freeloop.testing.folders import make_folder, wait_until_stopped
from run_process import Processes

HERE = Path(__file__).parent
AXE = HERE / "vendor" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing but the console is to be asked for anything.
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-pings",
)
BOUND = 30_000  # ms that anything may take here
UPDATES = "Number(document.documentElement.dataset.updates || 0)"


def pytest_collection_modifyitems(items):
    if CHROMIUM is None:
        missing = pytest.mark.skip(reason="no Chromium: apt-get install chromium")
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(missing)


@pytest.fixture(autouse=True)
def _no_blocking():
    """Playwright's own loop counts as running while a test here waits: nothing in this process is ours."""


@pytest.fixture(scope="module")  # a loop counts as running in this thread for as long as it is open
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


class Shop:
    """A running shop: its URL, and requests that go on while a test looks."""

    def __init__(self, run, folder):
        self.run = run
        self.folder = folder
        self.url = f"http://127.0.0.1:{run.port}"
        self.console = f"{self.url}/console"
        self.answers = []
        self._threads = []

    def get(self, path, timeout=70):
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:  # noqa: S310 - our own server
            return answer.read().decode()

    def status(self, path):
        """Ask, and return the status, an error's too."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=70) as answer:  # noqa: S310 - our own server
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def twin(self, page):
        """Return the JSON of a page."""
        return json.loads(self.get(f"/console/{page}.json"))

    @contextlib.contextmanager
    def loaded(self, path, *, callers=1, pause=0.1):
        """Ask again and again during the block, with a pause behind each answer; give the statuses so far."""
        over, statuses = threading.Event(), collections.deque()

        def call():
            while not over.wait(pause):
                with contextlib.suppress(OSError):
                    statuses.append(self.status(path))

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield statuses
        finally:
            over.set()
            for thread in threads:
                thread.join(70)

    def ask(self, *paths):
        """Send requests that nobody waits for; what they are answered, errors too, is in ``answers``."""
        for path in paths:
            thread = threading.Thread(target=self._ask, args=(path,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _ask(self, path):
        with contextlib.suppress(OSError):
            try:
                self.answers.append(self.get(path))
            except urllib.error.HTTPError as error:
                self.answers.append(error.read().decode())

    def wait(self, seconds=30):
        for thread in self._threads:
            thread.join(seconds)

    def logged(self, event, **details):
        wanted = {"event": event, **details}.items()
        return self.run.wait_for(lambda record: wanted <= record.items(), timeout=20)


@contextlib.contextmanager
def open_shop(*arguments, **environment):
    folder = make_folder()
    usual = {
        "FREELOOP_DATA_DIR": folder / "data",
        "FREELOOP_RUNTIME_DIR": folder / "run",
        "FREELOOP_DATABASE_POOL_SIZE": 3,
        "FREELOOP_DATABASE_ACQUIRE_TIMEOUT": 20,
    }
    with Processes() as processes:
        run = processes.freeloop("shop.py", *arguments, cwd=HERE, **usual | environment)
        try:
            yield Shop(run, folder)
        finally:
            run.process.terminate()
            run.wait(60)
            wait_until_stopped(folder / "data")
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shop():
    with open_shop() as running:
        yield running
        assert running.run.process.poll() is None, "it has ended:\n" + "".join(running.run.lines[-30:])


class Visit:
    """One page in the browser; it fails at the end where the page has complained."""

    def __init__(self, page, base):
        self.page = page
        self.base = base
        self.complaints = []
        self.expected = ()
        page.set_default_timeout(BOUND)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", self._hear_failure)
        page.on("request", lambda request: self._check_host(request.url))

    def _hear(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def _hear_failure(self, request):
        if "/live" not in request.url and request.failure != "net::ERR_ABORTED":
            self.complaints.append(f"{request.url}: {request.failure}")

    def _check_host(self, url):
        if not url.startswith(self.base.rpartition("/")[0]):
            self.complaints.append(f"another host was asked: {url}")

    def open(self, path):
        self.page.goto(f"{self.base}/{path}")
        return self.page

    def see(self, text, selector="main"):
        """Wait until a part of the page has a text: by itself, without a reload."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector).first).to_contain_text(text, timeout=BOUND)

    def wait_until(self, expression):
        """Wait until an expression holds in the page, whose policy forbids to ask it there."""
        until = time.monotonic() + BOUND / 1000
        while not (found := self.page.evaluate(expression)):
            assert time.monotonic() < until, f"{expression} did not come true"
            self.page.wait_for_timeout(50)
        return found

    def wait_updates(self, more=2):
        """Wait until the page has updated itself so many times more."""
        now = self.page.evaluate(UPDATES)
        self.wait_until(f"{UPDATES} >= {now + more}")

    def find_barriers(self):
        """Return what axe finds serious or worse."""
        self.page.evaluate(AXE.read_text("utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
            for each in found["violations"]
            if each["impact"] in {"serious", "critical"}
        ]

    def check(self):
        assert [each for each in self.complaints if not any(re.search(e, each) for e in self.expected)] == []


@pytest.fixture
def visit(browser, shop):
    """Open pages: ``visit()`` gives one at 1280 px in English, in the light scheme."""
    with visiting(browser, shop) as make:
        yield make


@contextlib.contextmanager
def visiting(browser, shop):
    with contextlib.ExitStack() as stack:
        visits = []

        def make(*, width=1280, locale="en-GB", scheme="light", base=None):
            context = browser.new_context(
                viewport={"width": width, "height": 860}, locale=locale, color_scheme=scheme
            )
            stack.callback(context.close)
            visits.append(Visit(context.new_page(), base or shop.console))
            return visits[-1]

        yield make
        for each in visits:
            each.check()
