"""An upstream that fails on purpose: a real HTTP server on loopback, which answers as its path says."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import Counter, deque
from types import TracebackType
from typing import Final, Self

from freeloop.testing.answers import ANSWERS, STRAY, Answer, Exchange, render
from freeloop.testing.answers import reset as reset_link
from freeloop.testing.network import bind_loopback

_CLOSE_TIMEOUT: Final = 5.0
_LONGEST_HEAD: Final = 2**16


class FaultyUpstream:
    """Answers each request in the way that its path names, or that a script gives out in turn.

    An async context manager that lives in the running loop; use it from that loop only.

    ::

        async with FaultyUpstream() as upstream:
            await client.get(upstream.url + "/hang")          # never answers
            upstream.script("/items", "close", "busy", "ok")  # the third call succeeds, and all after it
            await client.get(upstream.url + "/items")
            assert upstream.calls["/items"] == 3

    The ways are the keys of :data:`freeloop.testing.answers.ANSWERS`, such as ``ok``, ``hang``, ``drip``,
    ``close`` (after the request, without an answer), ``reset``, ``truncate``, ``garbage``, ``extra`` (an
    answer that nobody asked for, right behind the one that was), ``redirect-in-circles``,
    ``redirect-to-loopback``, ``bomb`` (64 MiB of zeros in 64 KiB of gzip), ``busy`` (429 with
    ``Retry-After: 7``). A path of another name is answered like ``ok``.

    Args:
        seed: where a message is cut, and what garbage is: the same for the same seed.
        tls: to serve https; None: http.

    Attributes:
        url: such as ``http://127.0.0.1:49152``.
        refusing_url: of a port where nothing listens, and nothing will.
        calls: how many requests came, by path without its query.
        requests: each request that came, the last 1,000.
        accepted: how many connections were made so far.
    """

    host: Final = "127.0.0.1"

    def __init__(self, *, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._tls = tls
        self._scripts: dict[str, deque[Answer]] = {}
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.url = self.refusing_url = ""
        self.calls: Counter[str] = Counter()
        self.requests: deque[Exchange] = deque(maxlen=1000)
        self.accepted = 0

    async def __aenter__(self) -> Self:
        # Bound and never listening: nobody else gets the port meanwhile.
        self._nowhere = bind_loopback(self.host, 0)
        self._server = await asyncio.start_server(
            self._serve, self.host, 0, ssl=self._tls, limit=_LONGEST_HEAD
        )
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://{self.host}:{self._server.sockets[0].getsockname()[1]}"
        self.refusing_url = f"{scheme}://{self.host}:{self._nowhere.getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._nowhere.close()
        for task, writer in self._links.items():
            task.cancel()
            writer.transport.abort()
        if self._links:
            await asyncio.wait(self._links, timeout=_CLOSE_TIMEOUT)

    @property
    def connections(self) -> int:
        """How many connections stand now."""
        return len(self._links)

    def script(self, path: str, *ways: str | Answer) -> None:
        """Answer the calls of ``path`` in these ways, in turn; the last one is for all that follow.

        Args:
            path: such as ``/items``, without a query.
            ways: one or more names, or functions of your own.

        Raises:
            ValueError: There is no way of that name.
        """
        unknown = [way for way in ways if isinstance(way, str) and way not in ANSWERS]
        if unknown or not ways:
            raise ValueError(f"expected one or more of {', '.join(ANSWERS)}; got {unknown}")
        self._scripts[path] = deque(ANSWERS[way] if isinstance(way, str) else way for way in ways)

    def drop(self, *, reset: bool = False) -> None:
        """End every connection that stands, as a server does that restarts.

        Args:
            reset: with RST; False: with FIN, after what is on its way.
        """
        for writer in self._links.values():
            if reset:
                reset_link(writer)
            else:
                writer.close()

    def send_stray(self, data: bytes = render(STRAY)) -> None:
        """Send an answer that nobody asked for on every connection that stands."""
        for writer in self._links.values():
            writer.write(data)

    async def wait_empty(self) -> None:
        """Wait until no connection stands."""
        await self._empty.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self.accepted += 1
        self._links[task] = writer
        self._empty.clear()
        try:
            while await self._answer(await self._read(reader, writer)):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()
            del self._links[task]
            if not self._links:
                self._empty.set()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        fields = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        content = await reader.readexactly(int(fields.get("content-length", 0)))
        return Exchange(method, target, content, self.url, self._dice, head, reader, writer)

    async def _answer(self, exchange: Exchange) -> bool:
        path = exchange.target.partition("?")[0]
        self.calls[path] += 1
        self.requests.append(exchange)
        script = self._scripts.get(path)
        if script is not None:
            answer = script.popleft() if len(script) > 1 else script[0]
        else:
            answer = ANSWERS.get(path.split("/")[1], ANSWERS["ok"])
        return await answer(exchange)
