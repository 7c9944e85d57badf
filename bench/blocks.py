"""Every way to block a loop, in the app that the tests have for it, and what a detector says of each."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from bench.load import Burst
from bench.servers import ROOT, Running

APPS = ROOT / "tests" / "acceptance" / "apps"
_LINES = (APPS / "blocking.py").read_text("utf-8").splitlines()
# Only the tests ask how soon a block is known, and what a thread of the app's own is called.
_APART = frozenset({"catastrophe", "own-thread"})
WAYS = tuple(line.rpartition("# ")[2] for line in _LINES if re.search(r"\S  # [a-z0-9-]+$", line))
INNOCENT = {"awaits": 20, "in-a-thread": 20, "computes-in-a-thread": 2, "in-a-process": 5, "crowd": 100}
_TOGETHER = {"starvation": 40}
_SLOW = 0.3  # s that the upstream takes
_PATIENCE = 1.5  # s after the answer in which a detector may speak


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector said.

    Attributes:
        found: The ways that it spoke up for.
        named: Those of them where what it said names the line that blocks.
        false: What only looks like a block, and it spoke up for.
    """

    found: Sequence[str]
    named: Sequence[str]
    false: Sequence[str]


def list_ways() -> tuple[str, ...]:
    """Return the names of all ways."""
    return tuple(way for way in WAYS if way not in _APART)


def question(
    server: Running,
    read: Callable[[], str],
    spoke: re.Pattern[str],
    ways: Sequence[str],
    innocent: Sequence[str],
) -> Verdict:
    """Block the loop of a server in each way, and hear what its detector says.

    Args:
        server: It runs the app of the tests.
        read: Returns all that the detector has written so far.
        spoke: What it writes where it has found something.
        ways: Which ways.
        innocent: What else to ask for.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/prepare", timeout=120):
        pass
    _settle(server)
    found, named, false = [], [], []
    with _slow_upstream() as upstream, _silent_name_server() as port:
        queries = {"requests": f"?upstream={upstream}", "library": f"?upstream={upstream}"}
        queries["dns"] = f"?port={port}"
        for way in ways:
            said = _ask(server, f"/{way}{queries.get(way, '')}", _TOGETHER.get(way, 1), read, spoke)
            if spoke.search(said):
                found.append(way)
                line = 1 + next(place for place, text in enumerate(_LINES) if text.endswith(f"# {way}"))
                if re.search(rf"blocking\.py\W{{1,5}}(l\. |line )?{line}\b", said):
                    named.append(way)
        for path in innocent:
            said = _ask(server, f"/{path}", INNOCENT[path], read, spoke)
            if spoke.search(said):
                false.append(path)
    return Verdict(found, named, false)


def _ask(server: Running, path: str, together: int, read: Callable[[], str], spoke: re.Pattern[str]) -> str:
    before = len(read())
    with Burst(server.port, path, together, timeout=60) as burst:
        burst.connect()
        burst.send()
        burst.collect()
    if burst.failures:
        raise RuntimeError(f"{path}: expected answers, got {dict(burst.failures)}")
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and not spoke.search(read()[before:]):
        time.sleep(0.02)
    _settle(server)
    return read()[before:]


def _settle(server: Running) -> None:
    """Wait until what was found so far is written; one that wakes up often is never still."""
    until = time.monotonic() + 0.5
    size = -1
    while time.monotonic() < until:
        if size != (size := server.log.stat().st_size):
            until = time.monotonic() + 0.3
        time.sleep(0.02)


@contextmanager
def _slow_upstream() -> Iterator[str]:
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(_SLOW)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def _silent_name_server() -> Iterator[int]:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
