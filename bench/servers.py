"""Starts a peer on a core of its own, reads what it uses from /proc, and always ends it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.family import read_memory, read_peak
from bench.machine import SERVER_CORE, on_core

ROOT = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Peer:
    """What is measured.

    Attributes:
        name: How results and pages call it.
        command: Its arguments after ``python``; started in the repository's root.
        listening: A regular expression for the line that says where it listens; group 1 is the port.
    """

    name: str
    command: tuple[str, ...]
    listening: str = r"running on http://127\.0\.0\.1:(\d+)"


def run_uvicorn(app: str, *options: str) -> tuple[str, ...]:
    """Return the command of plain uvicorn: uvloop, httptools and its access log, as it is by default."""
    return ("-m", "uvicorn", app, "--port", "0", "--loop", "uvloop", "--http", "httptools", *options)


def run_freeloop(app: str, *options: str) -> tuple[str, ...]:
    """Return the command that runs any app under ``freeloop run``, with the same loop and parser."""
    return ("-m", "freeloop", "run", app, "--port", "0", "--loop", "uvloop", "--http", "httptools", *options)


# How `freeloop serve` and `freeloop run` say where they listen.
OUR_LISTENING = (
    r'"url": ?"http://127\.0\.0\.1:(\d+)"[^\n]*"event": ?"listening"'
    r'|"event": ?"listening"[^\n]*"url": ?"http://127\.0\.0\.1:(\d+)"'
)
OURS = Peer("Freeloop", ("-m", "freeloop", "serve", "--port", "0"), OUR_LISTENING)
PLAIN = Peer("FastAPI, `async def`", run_uvicorn("bench.peers.plain_fastapi:app"))
SYNC = Peer("FastAPI, `def`", run_uvicorn("bench.peers.sync_fastapi:app"))
LITESTAR = Peer("Litestar", run_uvicorn("bench.peers.litestar_wait:app"))
BLACKSHEEP = Peer("BlackSheep", run_uvicorn("bench.peers.blacksheep_wait:app"))
AIOHTTP = Peer("aiohttp.web", ("-m", "bench.peers.aiohttp_web"))


class Running:
    """A started server; numbers are of its own process, without children (the embedded PostgreSQL)."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        self._proc = Path(f"/proc/{process.pid}")

    def cpu_seconds(self) -> float:
        """Return user and system time so far, in steps of a clock tick (10 ms as a rule)."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def cpu_clock(self) -> float:
        """Return the same to the nanosecond; too fine for :func:`stillness`, which a timer would break."""
        # clock_getcpuclockid(3): Linux makes the clock's number of the process id, and Python has the call
        # for threads only. 2 is CPUCLOCK_SCHED (include/linux/posix-timers_types.h).
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def held_up(self) -> float:
        """Return the seconds in which its main thread could have run, but something else had the core."""
        return int((self._proc / "schedstat").read_text().split()[1]) / 1e9

    def memory(self) -> int:
        """Return the proportional set size in bytes: what is shared counts by its share."""
        return read_memory(self.process.pid)

    def peak_memory(self) -> int:
        """Return the largest resident set size so far in bytes, with what is shared."""
        return read_peak(self.process.pid)

    def wait_still(self, *, timeout: float = 15.0) -> None:
        """Wait until the server has used no CPU time for 50 ms: queued work and logs are done."""
        is_still = stillness(self)
        wait_until(is_still, timeout=timeout, expected="the server to become idle")


def stillness(server: Running) -> Callable[[], bool]:
    """Return a function that says whether the server has used no CPU time for 50 ms, when asked often."""
    used, since = server.cpu_seconds(), time.monotonic()

    def is_still() -> bool:
        nonlocal used, since
        if (now := server.cpu_seconds()) != used:
            used, since = now, time.monotonic()
        return time.monotonic() - since >= 0.05

    return is_still


def calmness(server: Running) -> Callable[[], bool]:
    """Return a function that says whether the server used less than a fifth of its core in the last 0.3 s.

    Servers that look at their waiting requests now and then are never still, but calm.
    """
    looks = deque([(time.monotonic(), server.cpu_clock())])

    def is_calm() -> bool:
        now, used = time.monotonic(), server.cpu_clock()
        looks.append((now, used))
        while now - looks[0][0] > 0.35:
            looks.popleft()
        since, before = looks[0]
        return now - since >= 0.3 and used - before < 0.2 * (now - since)

    return is_calm


def wait_until(condition: Callable[[], bool], *, timeout: float, expected: str) -> None:
    """Poll every 5 ms.

    Raises:
        TimeoutError: It did not become true.
    """
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"expected {expected} within {timeout} s")
        time.sleep(0.005)


@contextmanager
def start(peer: Peer, environment: Mapping[str, str], *, timeout: float = 60.0) -> Iterator[Running]:
    """Start ``peer`` on the servers' core with its output in a file; end it by its own process id."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FREELOOP_")}
    clean["FREELOOP_DRAIN_DELAY"] = "0"  # no load balancer has to turn away
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output, on_core(SERVER_CORE):
            process = subprocess.Popen(
                [sys.executable, *peer.command],
                cwd=ROOT,
                env={**clean, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            server = Running(process, log)
            server.port = _wait_listening(peer, process, log, timeout)
            yield server
        finally:
            end(process)


def _wait_listening(peer: Peer, process: subprocess.Popen[bytes], log: Path, timeout: float) -> int:
    until = time.monotonic() + timeout
    while True:
        written = log.read_text(errors="replace")
        if found := re.search(peer.listening, written):
            return int(next(filter(None, found.groups())))
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(
                f"{peer.name}: expected it to listen within {timeout} s; exit code {process.poll()}, "
                f"output:\n{written[-3000:]}"
            )
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process by its own id."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
