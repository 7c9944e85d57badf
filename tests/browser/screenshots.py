"""Makes the pictures of the console in the docs, from a shop under load: ``python3 run.py screenshots``."""

import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from playwright.sync_api import sync_playwright  # noqa: E402 - as below

from conftest import CHROMIUM, FLAGS, open_shop  # noqa: E402 - found by the line above

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LOAD = 75  # seconds before the first picture


def main():
    with open_shop() as shop, sync_playwright() as playwright:
        over = threading.Event()
        for number in range(3):
            threading.Thread(target=load, args=(shop, over, number), daemon=True).start()
        time.sleep(LOAD)
        shop.get("/start/invoice")
        shop.get("/start/import")
        shop.get("/start/remind?delay=3600")
        shop.get("/report")
        shop.ask("/deadlock", "/wait", "/wait", *["/quotes"] * 25)
        shop.wait(0.1)
        shop.ask("/export?seconds=40", "/export?seconds=40", "/export?seconds=40")
        time.sleep(6)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for name, width, scheme, locale in (
            ("now", 1280, "light", "en-GB"),
            ("now", 390, "dark", "zh-TW"),
            ("requests", 1280, "dark", "en-GB"),
            ("blocks", 1280, "light", "en-GB"),
            ("tree", 1280, "light", "en-GB"),
            ("database", 1280, "light", "en-GB"),
            ("upstreams", 1280, "dark", "zh-TW"),
            ("tasks", 1280, "light", "en-GB"),
        ):
            context = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme, locale=locale
            )
            page = context.new_page()
            page.goto(f"{shop.console}/{name}")
            page.wait_for_timeout(2500)
            page.screenshot(path=IMAGES / f"console-{name}{'' if width == 1280 else '-narrow'}.png")
            context.close()
        browser.close()
        over.set()


def load(shop, over, number):
    paths = ("/orders", "/orders", "/orders", "/wait?seconds=0.02")
    count = 0
    while not over.wait(0.01 + 0.01 * number):
        count += 1
        shop._ask(paths[count % len(paths)])


if __name__ == "__main__":
    main()
