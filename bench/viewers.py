"""python -m bench.viewers PORT COUNT: the page Now of the console, kept open by so many who look.

A process of its own, on the load generator's core: each viewer follows the page's stream as a browser does.
"""

from __future__ import annotations

import select
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from bench.report import judge, spread, summarize
from bench.servers import ROOT, Running, end
from bench.slices import Slice, list_numbers, load, load_in_turn, pair

VIEWERS = 20
TARGET_PERCENT = 2  # what they may cost of the answers a second, at most
_PAGE = "/console/now/live"


def measure_viewers(
    server: Running, path: str, callers: int, slices: int, seconds: int
) -> dict[str, dict[str, Any]]:
    """Load a server with the console open and without, in turn; return the numbers of both, slice by slice.

    Args:
        server: One that has a console.
        path: What it is asked for, as fast as it answers.
        callers: By how many.
        slices: How often with viewers, and how often without.
        seconds: About how long each time; whole ones, as they are what a page is updated in.
    """
    with _open(server.port):
        count = round(load(server, path, callers, 1_000).rate * seconds)  # what is loaded late is loaded

    def ask(way: str) -> Slice:
        with ExitStack() as stack:
            # Opened in front of either, so that the server has rested as long, and closed again.
            stack.enter_context(_open(server.port))
            if way == "closed":
                stack.close()
            return load(server, path, callers, count)

    return {way: list_numbers(done) for way, done in load_in_turn(("closed", "open"), slices, ask).items()}


def summarize_viewers(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return medians over the rounds.

    Answers a second with the console ``open`` and ``closed``, the percent of them that are ``lost``, and the
    percent of CPU time that an answer takes ``more``.
    """
    watched, alone = ([each[way] for each in rounds] for way in ("open", "closed"))
    return {
        "open": summarize([statistics.median(each["rate"]) for each in watched]),
        "closed": summarize([statistics.median(each["rate"]) for each in alone]),
        "lost": pair(watched, alone, "rate", lambda mine, its: 100 * (1 - mine / its)),
        "more": pair(watched, alone, "cpu", lambda mine, its: 100 * (mine / its - 1)),
    }


def document_viewers(summary: Mapping[str, Any]) -> str:
    """Return the line about what they cost, with its verdict."""
    return (
        f"- {VIEWERS} viewers who have the console open cost {spread(summary['lost'], 1)} % of the answers a "
        f"second of `freeloop run` at full speed: {spread(summary['open'], 0)} with them, "
        f"{spread(summary['closed'], 0)} without; the target, at most {TARGET_PERCENT} %, is "
        f"{judge(summary['lost'], TARGET_PERCENT)}. An answer takes {spread(summary['more'], 1)} % more CPU "
        "time of the process with them, which what else runs on the machine disturbs less."
    )


@contextmanager
def _open(port: int) -> Iterator[None]:
    """Have the console open by all viewers, from the moment on in which each has seen the page."""
    command = (sys.executable, "-m", "bench.viewers", f"{port}", f"{VIEWERS}")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            if said != "open\n":
                raise RuntimeError(f"expected {VIEWERS} viewers to see {_PAGE}; they ended before")
            yield
            if process.poll() is not None:
                raise RuntimeError(f"expected {VIEWERS} viewers to look until the end; a stream has ended")
        finally:
            end(process)


def follow(port: int, count: int) -> None:
    """Follow the page with so many connections for ever; say ``open`` once each has it.

    Raises:
        ConnectionError: A stream has ended.
    """
    with ExitStack() as stack:
        poller = stack.enter_context(select.epoll())
        streams: dict[int, socket.socket] = {}
        unseen: dict[int, bytes] = {}
        for _ in range(count):
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            stream.sendall(f"GET {_PAGE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            streams[stream.fileno()] = stream
            unseen[stream.fileno()] = b""
            poller.register(stream, select.EPOLLIN)
        while True:
            for number, _ in poller.poll():
                part = streams[number].recv(1 << 20)
                if not part:
                    raise ConnectionError(f"port {port}: a stream of {_PAGE} has ended")
                if number in unseen:
                    unseen[number] += part
                    if b"event: sample" in unseen[number]:  # what comes behind the page
                        del unseen[number]
                        if not unseen:
                            print("open", flush=True)


if __name__ == "__main__":
    follow(int(sys.argv[1]), int(sys.argv[2]))
