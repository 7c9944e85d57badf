"""The load generator: N connections, exactly one request each, all at once, the latency of each.

An own one, since those at hand (wrk, ab, hey) keep connections busy in a loop and give the latencies of a
mixture; none opens ten thousand connections first and then asks each of them exactly one thing. Plain
sockets and epoll: what it measures is then not the queue of another event loop.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from bench.answers import is_complete

_WAVE = 250
_ESTABLISHED, _LISTENING = "01", "0A"  # include/net/tcp_states.h


class Burst:
    """Connections to one server, and what each of them was answered.

    Args:
        port: Where the server listens on 127.0.0.1.
        path: What every connection asks for.
        count: How many connections.
        timeout: Seconds for everything; who has no answer then has failed.

    Attributes:
        latencies: Seconds to the last byte of every answer with status 200.
        failures: What happened instead, and how often.
    """

    def __init__(self, port: int, path: str, count: int, *, timeout: float) -> None:
        self.port = port
        self.count = count
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()
        headers = f"Host: 127.0.0.1:{port}\r\nUser-Agent: freeloop-bench\r\nAccept: */*"
        self._request = f"GET {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode()
        self._until = time.perf_counter() + timeout
        self._poller = select.epoll()
        self._sockets: list[socket.socket] = []
        self._waiting: dict[int, tuple[socket.socket, float, bytearray]] = {}

    def __enter__(self) -> Self:
        gc.disable()  # a collection among the answers would be read as the server's
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()
        self._poller.close()
        gc.enable()

    def connect(self) -> None:
        """Open all connections, in waves that the server has accepted before the next comes."""
        while len(self._sockets) < self.count:
            for _ in range(min(_WAVE, self.count - len(self._sockets))):
                self._open()
            self._wait_accepted(0)

    def send(self) -> None:
        """Write all requests; each latency counts from its own write."""
        for each in self._sockets:
            self._ask(each, time.perf_counter())

    def connect_and_send(self) -> None:
        """Connect and ask at once; every latency counts from the common start."""
        started = time.perf_counter()
        while len(self._sockets) < self.count:
            for _ in range(min(_WAVE, self.count - len(self._sockets))):
                self._ask(self._open(), started)
            self._receive(0)
            # Below the smallest backlog among the peers (uvicorn's 2,048): a full queue drops connections,
            # and the kernel tries again a second later.
            self._wait_accepted(1_000)

    def collect(self, while_waiting: Callable[[], None] | None = None) -> None:
        """Read all answers. ``while_waiting`` is called about every 10 ms until the first one comes."""
        while self._waiting and time.perf_counter() < self._until:
            self._receive(0.01)
            if while_waiting is not None and not self.latencies and not self.failures:
                while_waiting()
        self.failures["no answer in time"] += len(self._waiting)
        self.failures += Counter()  # drops the zero
        self.latencies.sort()

    def _open(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        opened.setblocking(False)
        self._sockets.append(opened)
        return opened

    def _ask(self, to: socket.socket, started: float) -> None:
        self._waiting[to.fileno()] = (to, started, bytearray())
        self._poller.register(to, select.EPOLLIN)
        to.send(self._request)

    def _receive(self, timeout: float) -> None:
        for number, _ in self._poller.poll(timeout, 1_000):
            source, started, buffer = self._waiting[number]
            try:
                chunk = source.recv(65_536)
            except OSError as error:
                self._end(number, source, type(error).__name__)
                continue
            buffer += chunk
            if is_complete(buffer):
                if buffer.startswith(b"HTTP/1.1 200"):
                    self.latencies.append(time.perf_counter() - started)
                    self._end(number, source, None)
                else:
                    self._end(number, source, buffer[:12].decode("latin-1"))
            elif not chunk:
                self._end(number, source, "closed without an answer")

    def _end(self, number: int, source: socket.socket, failure: str | None) -> None:
        # The connection stays open, as a browser's would: closing it is not part of the request.
        del self._waiting[number]
        self._poller.unregister(source)
        if failure:
            self.failures[failure] += 1

    def _wait_accepted(self, allowed: int) -> None:
        while _count_queued(self.port) > allowed:
            if time.perf_counter() > self._until:
                raise TimeoutError(
                    f"port {self.port}: expected the server to accept the connections in time; "
                    f"{_count_queued(self.port)} still queue after {len(self._sockets)} of {self.count}"
                )
            time.sleep(0.001)


def count_unread(port: int) -> int:
    """Return how many of the server's connections hold a request that it has not read."""
    unread = 0
    for state, queued in _read_queues(port):
        unread += state == _ESTABLISHED and queued > 0
    return unread


def _count_queued(port: int) -> int:
    """Return how many connections the listening socket holds that the server has not accepted."""
    # Listening sockets come first in the table: this reads one page of it, not ten thousand rows.
    return next((queued for state, queued in _read_queues(port) if state == _LISTENING), 0)


def _read_queues(port: int) -> Iterator[tuple[str, int]]:
    """Yield state and receive queue of every IPv4 socket of ``port``."""
    with Path("/proc/net/tcp").open(encoding="ascii") as table:
        next(table)
        for row in table:
            _, local, _, state, queues, *_ = row.split(maxsplit=5)
            if int(local[-4:], 16) == port:
                yield state, int(queues[-8:], 16)
