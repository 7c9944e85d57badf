"""Who sleeps until an alarm does not notice that it was put off, and always notices that it went off."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from freeloop.watch import alarm as rooms
from freeloop.watch import watch
from freeloop.watch.alarm import Alarm

BOUND = 30  # seconds that anything may take on a busy machine


class Sleeper:
    """A thread that sleeps until an alarm, and writes down when it woke up."""

    def __init__(self):
        self.alarm = Alarm()
        self.woken = threading.Semaphore(0)
        self.times = []
        self.thread = threading.Thread(target=self.sleep, daemon=True)
        self.thread.start()

    def sleep(self):
        while self.alarm.wait():
            self.times.append((time.monotonic(), self.alarm.at))
            self.woken.release()

    def end(self):
        self.alarm.wake()
        self.thread.join(BOUND)
        assert not self.thread.is_alive()
        self.alarm.close()


@pytest.fixture(params=["kernel", "polls"])
def sleeper(request, monkeypatch):
    if request.param == "polls":
        monkeypatch.setattr(rooms, "_LINUX", False)
    sleeper = Sleeper()
    yield sleeper
    sleeper.end()


def test_it_goes_off_once_each_time_it_was_set_and_not_before(sleeper):
    for pause in (0.05, 0.0, 0.02):
        at = time.monotonic() + pause
        sleeper.alarm.set(at)
        assert sleeper.woken.acquire(timeout=BOUND)
        woken, was = sleeper.times.pop()
        assert woken >= at
        assert was == at
        assert not sleeper.woken.acquire(timeout=0.05)


def test_put_off_it_goes_off_at_the_later_time_only(sleeper):
    began = time.monotonic()
    sleeper.alarm.set(began + 10)
    for later in (20, 15, 30):
        assert sleeper.alarm.put_off(began + later)
    assert sleeper.alarm.at == began + 30  # never earlier
    sleeper.alarm.set(began + 0.05)
    assert sleeper.alarm.put_off(began + 0.2) or time.monotonic() >= began + 0.05
    assert sleeper.woken.acquire(timeout=BOUND)
    assert sleeper.times[0][0] >= sleeper.times[0][1]


def test_what_has_gone_off_cannot_be_put_off():
    alarm = Alarm()
    alarm.set(time.monotonic())
    assert not alarm.put_off(time.monotonic() + 10)
    assert alarm.wait()
    alarm.wake()
    assert not alarm.wait()
    alarm.close()


def test_two_threads_that_set_it_leave_it_at_what_it_says():
    alarm, end = Alarm(), time.monotonic() + 0.5
    assert not alarm.put_off(end)  # nobody has set it
    alarm.set(time.monotonic() + 30)

    def put_off():
        while time.monotonic() < end:
            alarm.put_off(time.monotonic() + 60)

    thread = threading.Thread(target=put_off)
    thread.start()
    while time.monotonic() < end:
        alarm.set(time.monotonic() + 30)
    thread.join(BOUND)
    assert alarm.at > time.monotonic() + 20
    alarm.set(time.monotonic())
    assert alarm.wait()
    alarm.wake()
    alarm.close()


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="needs Linux, which counts a thread's sleeps"
)
@pytest.mark.no_blocking(threshold=None)  # it looks at the watchdog of its own
async def test_the_thread_of_the_watchdog_sleeps_while_all_is_well():
    def count(thread):
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    others = {*threading.enumerate()}
    with watch() as watching:
        (thread,) = {*threading.enumerate()} - others
        async with asyncio.timeout(BOUND):
            for _ in range(20):  # a machine that is busy wakes it up, now and then
                beats, slept = watching.lags.count, await asyncio.to_thread(count, thread)
                await asyncio.sleep(0.5)
                if await asyncio.to_thread(count, thread) == slept:
                    break
            else:
                pytest.fail("expected it to sleep for half a second, it woke up each time")
        assert watching.lags.count > beats
