"""Who gets the GIL first, once somebody has let go of it, is not for the watchdog to choose."""

import asyncio
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from freeloop.watch import watch
from freeloop.watch.probe import Probe

BOUND = 30  # seconds that anything may take on a busy machine
EVIL = re.compile(r"(a+)+$")


def measure(text):
    began = time.thread_time()
    EVIL.match(text)
    return time.thread_time() - began


def make_text():
    """Return what holds the GIL for long enough to be sure of it."""
    text = "a" * 16 + "b"
    while measure(text) < 0.4:
        text = "a" + text
    return text


class Meeting:
    """A thread that holds the GIL, then is met by the loop, then moves on, then is looked at."""

    def __init__(self):
        self.begun, self.met, self.moved, self.end = (threading.Event() for _ in range(4))
        self.line = 0

    def begin(self, text):
        """Start the thread, anew."""
        for event in (self.begun, self.met, self.moved, self.end):
            event.clear()
        thread = threading.Thread(target=self.crunch, args=(text,), name="cruncher", daemon=True)
        thread.start()
        return thread

    def crunch(self, text):
        self.line = sys._getframe().f_lineno + 2
        self.begun.set()
        _ = EVIL.match(text), self.met.wait(BOUND)
        self.moved.set()
        self.end.wait(BOUND)

    def order(self, monkeypatch):
        meet, look = Probe._meet, Probe._look

        def meet_first(probe):
            meet(probe)
            if self.begun.is_set():
                self.met.set()

        def look_last(probe):
            if self.begun.is_set() and probe._is_late(time.monotonic()):
                self.moved.wait(BOUND)
            look(probe)

        monkeypatch.setattr(Probe, "_meet", meet_first)
        monkeypatch.setattr(Probe, "_look", look_last)


@pytest.mark.no_blocking(threshold=None)  # the test's own watch is to find it
async def test_what_a_thread_ran_is_known_though_it_has_moved_on_before_the_watchdog_looks(monkeypatch):
    meeting, text = Meeting(), make_text()
    meeting.order(monkeypatch)
    with watch(backstop=False) as watching:
        async with asyncio.timeout(BOUND):
            # On a crowded machine it is not always sure who held the GIL.
            while not (found := [each for each in watching.findings() if each.cause == "thread"]):
                await asyncio.sleep(0.05)
                thread = meeting.begin(text)
                await asyncio.to_thread(meeting.moved.wait, BOUND)
                await watching.catch_up(5.0)
                meeting.end.set()
                await asyncio.to_thread(thread.join, BOUND)
    (finding,) = found
    assert (Path(finding.file), finding.line) == (Path(__file__), meeting.line)
    assert finding.thread == "cruncher"
