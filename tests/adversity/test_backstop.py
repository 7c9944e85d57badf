"""The timer of the watchdog and a process that does not get to run: what goes off must never crash it."""

import signal
import subprocess
import sys
import time

STOPS = 40
# The frames of such calls are half made for a good part of the time: to read them just then would crash.
SCRIPT = """
import asyncio, sys, threading, time
from freeloop.watch import watch

async def main():
    with watch():
        print("ready", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end and not found:
            sorted(range(2000), key=lambda each: -each)
            await asyncio.sleep(0)

found = []
threading.Thread(target=lambda: found.append(sys.stdin.readline()), daemon=True).start()
asyncio.run(main())
print("done", flush=True)
"""


def test_a_process_that_is_stopped_in_the_middle_of_python_goes_on():
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(STOPS):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)  # longer than the timer waits
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        out, _ = process.communicate("enough\n", timeout=60)
        assert (process.returncode, out) == (0, "done\n")
