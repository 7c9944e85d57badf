"""The timer for what holds the GIL and an app that uses SIGALRM itself, each in a process of its own."""

import json
import subprocess
import sys

import pytest

BOUND = 60  # seconds that anything may take here

# Blocks until that is found, and once more: by the end of the first time the watchdog has surely looked.
SCRIPT = """
import asyncio, json, re, signal, sys, time
import uvloop
from freeloop.watch import watch

EVIL = re.compile("(a+)+$")
way, loop = sys.argv[1:]
calls = []

def own(*_):
    calls.append("own")

def block(text):
    EVIL.match(text)

async def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)

async def block_until_found(watching, times):
    end = time.monotonic() + 30
    while sum(each.times for each in watching.findings()) < times:
        assert time.monotonic() < end
        block(text)
        await watching.catch_up()  # then it has surely looked

async def main():
    if way == "before":
        signal.signal(signal.SIGALRM, own)
    with watch(backstop=way != "off") as watching:
        await asyncio.sleep(0.05)  # as with any app, the heart beats before the first request
        told = {"default": signal.getsignal(signal.SIGALRM) is signal.SIG_DFL}
        if way == "after":
            signal.signal(signal.SIGALRM, own)
        elif way == "on the loop":
            asyncio.get_running_loop().add_signal_handler(signal.SIGALRM, own)
        # Whoever has a handler of its own by the next heartbeat keeps it.
        beats = watching.lags.count
        await until(lambda: watching.lags.count > beats + 2)
        for times in (1, 2):
            calls.clear()
            await block_until_found(watching, times)
        told["found"] = sorted({each.function for each in watching.findings()})
        told["spurious"] = len(calls)
        await take_alarm(told, "in time")
    told["default again"] = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    await take_alarm(told, "afterwards")
    print(json.dumps(told))

async def take_alarm(told, name):
    if way in {"on", "off"}:
        return
    calls.clear()
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    await until(lambda: calls)
    told[name] = calls

def measure(text):
    began = time.thread_time()
    EVIL.match(text)
    return time.thread_time() - began

text = "a" * 16 + "b"
while measure(text) < 0.4:  # the timer waits for a third of that
    text = "a" + text
factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


def run(way, loop="asyncio"):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way, loop], capture_output=True, text=True, timeout=BOUND, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the timer is for Linux")
def test_the_timer_has_sigalrm_only_while_it_watches():
    told = run("on")
    assert told == {"default": False, "found": ["block"], "spurious": 0, "default again": True}


def test_switched_off_it_leaves_sigalrm_alone_and_finds_what_held_the_gil():
    told = run("off")
    assert told == {"default": True, "found": ["block"], "spurious": 0, "default again": True}


@pytest.mark.parametrize(
    ("way", "loop"),
    [("before", "asyncio"), ("after", "asyncio"), ("on the loop", "asyncio"), ("on the loop", "uvloop")],
)
def test_a_handler_of_the_app_is_called_by_its_own_alarms_alone_and_stays(way, loop):
    told = run(way, loop)
    assert told["found"] == ["block"]
    assert told["spurious"] == 0
    assert told["in time"] == told["afterwards"] == ["own"]
    assert told["default again"] is False
