"""The order and the times of a shutdown: a uvicorn server that keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import uvicorn

from freeloop.server.connections import FIRST_REQUEST, Farewell
from freeloop.server.forwarded import shorten
from freeloop.server.protocol import corked
from freeloop.server.sockets import accept_rest

_ACLOSE: Final = "async_generator_athrow"  # CPython's type of what aclose() of an async generator returns
_LOOK: Final = 0.01  # seconds between two looks at the connections: uvicorn tells nobody of the end of one


class Drain(Protocol):
    """What is drained: the kit of an app."""

    def drain(self) -> None:
        """Turn readiness."""

    def close_streams(self) -> None:
        """End what never ends by itself."""

    def cancel(self) -> None:
        """Cancel everything that runs."""

    async def wait_idle(self) -> None:
        """Wait until nothing runs."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """When each part of a shutdown ends, in seconds after the signal.

    Attributes:
        delay: Until then, requests are taken as before.
        grace: Until then, what runs may finish; then it is cancelled.
        cut: Until then, its answers may travel; then connections are cut, since an answer that its client
            does not read holds up the clean-up behind it.
        cleanup: Until then, its clean-up may take; then resources close.
        total: Then the process ends, whatever still runs.
    """

    delay: float
    grace: float
    cut: float
    cleanup: float
    total: float

    @classmethod
    def plan(cls, total: float, delay: float) -> Self:
        """Divide ``total``: a third of it belongs to clean-up and closing, and the delay may take half.

        Args:
            total: Seconds from the signal to the end of the process.
            delay: Seconds during which requests are still taken, at most half of ``total``.
        """
        return cls(min(delay, total / 2), total * 2 / 3, total * 3 / 4, total * 5 / 6, total)


class Server(uvicorn.Server):
    """A uvicorn server that stops in order.

    Where uvicorn refuses connections at once, waits for streams for ever and closes resources under running
    requests, this one takes requests during the delay, ends streams, waits for the rest, cancels what is left
    with clean-up, and closes resources last.

    Args:
        config: uvicorn's configuration.
        drain: What is drained.
        timetable: When each part ends.
        state: What requests find in their state, beside what the app's lifespan yields.
        on_listening: Called once requests are answered.
        begin: Called where the shutdown begins without a signal.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain: Drain,
        timetable: Timetable,
        state: Mapping[str, Any],
        on_listening: Callable[[], None],
        begin: Callable[[], None],
    ) -> None:
        super().__init__(config)
        if not config.loaded:
            config.load()
        config.http_protocol_class = corked(config.http_protocol_class)
        config.loaded_app = shorten(config.loaded_app)
        self._drain = drain
        self._timetable = timetable
        self._state = state
        self._on_listening = on_listening
        self._begin = begin
        self._began = 0.0
        self._signals = 0
        self._undelayed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._farewell = Farewell()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self.lifespan.state.update(self._state)
        await super().startup(sockets)
        self._on_listening()

    def stop(self, signalled: float, *, at_once: bool) -> None:
        """Heed a signal: the first begins the shutdown, where nothing else has; the second hurries it.

        Args:
            signalled: When, in seconds of :func:`time.monotonic`.
            at_once: Whether to take no more requests from now on, without the delay.
        """
        self._signals += 1
        if self._signals > 1:
            self._hurry.set()
        if at_once or self._signals > 1:
            self._undelayed.set()
        self._begin_drain(signalled)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain in order; see the class."""
        if not self._began:  # uvicorn's own limit of requests has stopped it
            self._begin()
            self._begin_drain(time.monotonic())
        await self._wait(self._timetable.delay, self._undelayed.wait())
        await self._stop_listening(sockets or [])
        # Before answers end, so that their connections end with them.
        self._farewell.bid(self.server_state.connections)
        self._drain.close_streams()
        await self._wait(self._timetable.grace, self._run_out(), self._hurry.wait())
        self._drain.cancel()
        await self._wait(self._timetable.cut, self._run_out())
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self._wait(self._timetable.cleanup, self._run_out())
        await self.lifespan.shutdown()

    def _begin_drain(self, began: float) -> None:
        if not self._began:
            self._began = began
            self._drain.drain()
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``serve``: uvicorn would raise them again, and end with one, not with 0."""
        yield

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Take who has connected already, then listen no more."""
        welcomes = [
            asyncio.ensure_future(self._welcome(connection))
            for server in self.servers
            for listening in server.sockets
            for connection in accept_rest(listening, self.config.backlog)
        ]
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        if welcomes:
            await asyncio.wait(welcomes)

    async def _welcome(self, connection: socket.socket) -> None:
        """Serve a connection; who is gone already, or does not come to a TLS session, is nobody's loss."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(FIRST_REQUEST):
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._make_protocol, connection, ssl=self.config.ssl
                )

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def _wait(self, seconds: float, *what: Coroutine[Any, Any, object]) -> None:
        await wait_until(self._began + seconds, *what)

    async def _run_out(self) -> None:
        """Wait until every answer has reached its client and nothing runs."""
        while self.server_state.connections or self.server_state.tasks:
            self._farewell.bid(self.server_state.connections)
            await asyncio.sleep(_LOOK)
        await self._drain.wait_idle()
        await _close_generators()


async def wait_until(moment: float, *what: Coroutine[Any, Any, object]) -> None:
    """Wait until one has ended, at most until a moment of :func:`time.monotonic`; then cancel all."""
    waiting = [asyncio.ensure_future(each) for each in what]
    left = max(0.0, moment - time.monotonic())
    await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()


async def _close_generators() -> None:
    """Wait for the clean-up of streams that were left half-way.

    Where a stream is cancelled while a part of it is sent, nobody closes its generator: it is found by the
    garbage collector, and the loop runs its clean-up in a task of its own.
    """
    gc.collect()
    await asyncio.sleep(0)
    while closing := [task for task in asyncio.all_tasks() if type(task.get_coro()).__name__ == _ACLOSE]:
        await asyncio.wait(closing)
