"""The open loop: requests go out when they are due, whatever became of those before.

Callers that wait for their answer before they ask again slow down with the server and so hide its overload.
Here each request has a connection of its own and a caller who gives up after a time, as browsers and clients
with a time-out do. A latency counts from the moment that the request was due, not from when it was sent:
where the generator is late, that is part of it. Plain sockets and epoll, as in ``bench.load``.
"""

from __future__ import annotations

import gc
import random
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bench.answers import is_complete, read_status
from bench.report import percentile


class Due(NamedTuple):
    """A request: when, in seconds since the start, and what is asked."""

    when: float
    path: str


@dataclass(slots=True)
class Call:
    """What became of a request.

    Attributes:
        due: When it was to be sent, in seconds since the start.
        path: What was asked.
        status: The status of the complete answer; 0: there was none.
        latency: Seconds from when it was due to its answer or failure.
        failure: Why there is no answer.
    """

    due: float
    path: str
    status: int = 0
    latency: float = 0.0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """All calls of a load, and how well the generator kept its time: seconds that its requests were late."""

    calls: list[Call]
    late_p99: float
    latest: float


def plan_poisson(path: str, rate: float, seconds: float, seed: int) -> list[Due]:
    """Plan requests of callers who know nothing of each other, ``rate`` a second."""
    chance = random.Random(seed)  # noqa: S311 - traffic, no secret
    due, now = [], chance.expovariate(rate)
    while now < seconds:
        due.append(Due(now, path))
        now += chance.expovariate(rate)
    return due


def plan_even(path: str, every: float, seconds: float) -> list[Due]:
    """Plan one request each ``every`` seconds, the first in the middle of the first of them."""
    return [Due((number + 0.5) * every, path) for number in range(round(seconds / every))]


def send(port: int, plan: Iterable[Due], *, patience: float) -> Load:
    """Send what is planned to 127.0.0.1; return when all of it is answered or given up.

    Args:
        port: Where the server listens.
        plan: The requests, in any order.
        patience: Seconds after which a caller gives up and closes its connection.
    """
    gc.disable()  # a collection among the answers would be read as the server's
    try:
        return _Sending(port, patience).run(sorted(plan))
    finally:
        gc.enable()


class _Sending:
    def __init__(self, port: int, patience: float) -> None:
        self.port = port
        self.patience = patience
        self.poller = select.epoll()
        self.open: dict[int, tuple[socket.socket, Call, bytearray]] = {}
        self.lateness: list[float] = []
        self.started = time.perf_counter()

    def run(self, plan: list[Due]) -> Load:
        calls = [Call(due.when, due.path) for due in plan]
        coming = deque(calls)
        impatient: deque[tuple[int, Call]] = deque()  # who was sent, in the order in which they give up
        try:
            while coming or self.open:
                now = self.now()
                while coming and coming[0].due <= now:
                    call = coming.popleft()
                    self.lateness.append(now - call.due)
                    if (number := self.begin(call)) is not None:
                        impatient.append((number, call))
                    now = self.now()
                while impatient and impatient[0][1].due + self.patience <= now:
                    number, call = impatient.popleft()
                    if number in self.open and self.open[number][1] is call:
                        self.end(number, 0, "gave up")
                until = min(
                    coming[0].due if coming else now + 0.1,
                    impatient[0][1].due + self.patience if impatient else now + 0.1,
                )
                # epoll counts in milliseconds and rounds up: the last one is spent looking.
                self.receive(int(1000 * max(0.0, until - now)) / 1000)
        finally:
            for sock, _, _ in self.open.values():
                sock.close()
            self.poller.close()
        ordered = sorted(self.lateness)
        return Load(calls, percentile(ordered, 99) if ordered else 0.0, ordered[-1] if ordered else 0.0)

    def now(self) -> float:
        return time.perf_counter() - self.started

    def begin(self, call: Call) -> int | None:
        """Connect; the request is written once the connection stands."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.connect(("127.0.0.1", self.port))
        except BlockingIOError:
            pass
        except OSError as error:
            sock.close()
            call.failure = type(error).__name__
            return None
        self.open[sock.fileno()] = (sock, call, bytearray())
        self.poller.register(sock, select.EPOLLOUT)
        return sock.fileno()

    def receive(self, timeout: float) -> None:
        for number, event in self.poller.poll(timeout, 1_000):
            sock, call, buffer = self.open[number]
            try:
                if event & select.EPOLLOUT:
                    self.poller.modify(number, select.EPOLLIN)
                    sock.send(self.render(call.path))
                    continue
                chunk = sock.recv(65_536)
            except OSError as error:
                self.end(number, 0, type(error).__name__)
                continue
            buffer += chunk
            if is_complete(buffer):
                self.end(number, read_status(buffer), "")
            elif not chunk:
                self.end(number, 0, "closed without an answer")

    def render(self, path: str) -> bytes:
        headers = f"Host: 127.0.0.1:{self.port}\r\nUser-Agent: freeloop-bench\r\nConnection: close"
        return f"GET {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode()

    def end(self, number: int, status: int, failure: str) -> None:
        sock, call, _ = self.open.pop(number)
        call.status, call.failure = status, failure
        call.latency = self.now() - call.due
        self.poller.unregister(number)
        sock.close()


def count_failures(calls: Iterable[Call]) -> dict[str, int]:
    """Return why calls have no answer, or one that is neither 200 nor 503, and how often."""
    return dict(
        Counter(call.failure or f"status {call.status}" for call in calls if call.status not in {200, 503})
    )
