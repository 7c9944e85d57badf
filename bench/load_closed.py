"""The closed loop: callers on keep-alive connections, each of whom asks again once it was answered.

At full speed the server decides how fast; at a rate, a request goes out when it is due, on a connection that
is free. Plain sockets and epoll as in ``bench.load``: one core of this asks several times faster than one
core of a FastAPI service answers.
"""

from __future__ import annotations

import gc
import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from bench.answers import is_complete, read_pause, read_status


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of a number of requests.

    Attributes:
        count: How many were answered with a status of success (2xx).
        failed: How many were answered otherwise.
        seconds: From the first request to the last answer.
    """

    count: int
    failed: int
    seconds: float


class Callers:
    """A number of callers. One that is refused comes again when ``Retry-After`` says.

    Args:
        port: Where the server listens on 127.0.0.1.
        path: What they ask for; or several paths, each caller one, in turn.
        count: How many connections.
        timeout: Seconds that :meth:`ask` may take.
        method: GET, or one that sends an empty body.
    """

    def __init__(
        self,
        port: int,
        path: str | Sequence[str],
        count: int,
        *,
        timeout: float = 60.0,
        method: str = "GET",
    ) -> None:
        self.port = port
        self.count = count
        self.timeout = timeout
        headers = f"Host: 127.0.0.1:{port}\r\nUser-Agent: freeloop-bench\r\nAccept: */*"
        paths = [path] if isinstance(path, str) else path
        if method != "GET":
            headers += "\r\nContent-Length: 0"
        self._texts = [f"{method} {each} HTTP/1.1\r\n{headers}\r\n\r\n".encode() for each in paths]
        self._requests: dict[int, bytes] = {}
        self._poller = select.epoll()
        self._sockets: dict[int, socket.socket] = {}

    def __enter__(self) -> Self:
        gc.disable()
        for place in range(self.count):
            opened = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setblocking(False)
            self._sockets[opened.fileno()] = opened
            self._requests[opened.fileno()] = self._texts[place % len(self._texts)]
            self._poller.register(opened, select.EPOLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets.values():
            each.close()
        self._poller.close()
        gc.enable()

    def ask(self, total: int, *, rate: float | None = None) -> Answers:
        """Send so many requests, and wait for all answers.

        Args:
            total: How many.
            rate: How many a second, in equal distances; None: as fast as they are answered.

        Raises:
            ConnectionError: The server closed a connection.
            TimeoutError: It took too long.
        """
        free = deque(self._sockets)
        resting: list[tuple[float, int]] = []
        buffers: dict[int, bytes] = {}
        sent = good = failed = 0
        started = time.perf_counter()
        while good + failed < total:
            now = time.perf_counter() - started
            if now > self.timeout:
                raise TimeoutError(
                    f"port {self.port}: expected {total} answers in {self.timeout} s, got {good + failed}"
                )
            while resting and resting[0][0] <= now:
                free.append(heapq.heappop(resting)[1])
            while free and sent < total and (rate is None or sent / rate <= now):
                number = free.popleft()
                self._sockets[number].send(self._requests[number])
                sent += 1
            waiting = 0.1 if rate is None or sent == total or not free else max(0.0, sent / rate - now)
            # epoll counts in milliseconds and rounds up: the last one is spent looking.
            for number, _ in self._poller.poll(int(1000 * waiting) / 1000):
                chunk = self._sockets[number].recv(65_536)
                if not chunk:
                    raise ConnectionError(f"port {self.port}: the server closed a connection of {self.count}")
                answer = buffers.pop(number, b"") + chunk
                if not is_complete(answer):
                    buffers[number] = answer
                    continue
                if 200 <= read_status(answer) < 300:
                    good += 1
                    free.append(number)
                else:
                    failed += 1
                    heapq.heappush(resting, (now + read_pause(answer), number))
        return Answers(good, failed, time.perf_counter() - started)
