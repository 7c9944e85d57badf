"""One process: uvicorn with an ordered drain, and exit code 0 before one total deadline."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import FrameType
from typing import Any, Final

import uvicorn

from freeloop.errors import StartError
from freeloop.server.shutdown import Drain, Overdue, Timetable

logger = logging.getLogger("freeloop.server")
_MOST_FILES: Final = 1_000_000  # Linux refuses more by default (fs.nr_open)
_FIRST_REQUEST: Final = 0.5  # seconds that a connection may take to send the request it was opened for
_LOOK: Final = 0.01


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
        self._drain = drain
        self._timetable = timetable
        self._state = state
        self._on_listening = on_listening
        self._begin = begin
        self._signalled = 0.0
        self._told: set[Any] = set()
        self._waiting: dict[Any, float] = {}
        self._hurry = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self.lifespan.state.update(self._state)
        await super().startup(sockets)
        self._on_listening()

    def stop(self, signalled: float, *, at_once: bool) -> None:
        """Begin the shutdown; called again, hurry it.

        Args:
            signalled: When, in seconds of :func:`time.monotonic`.
            at_once: Whether to take no more requests from now on, without the delay.
        """
        if self._signalled:
            self._hurry.set()
            return
        self._signalled = signalled
        if at_once:
            self._timetable = replace(self._timetable, delay=0.0)
        self._drain.drain()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain in order; see the class."""
        if not self._signalled:  # uvicorn's own limit of requests has stopped it
            self._begin()
            self.stop(time.monotonic(), at_once=False)
        await self._wait(self._timetable.delay, self._hurry.wait())
        await self._stop_listening(sockets or [])
        self._close_connections()  # before answers end, so that their connections end with them
        self._drain.close_streams()
        await self._wait(self._timetable.grace, self._run_out(), self._hurry.wait())
        self._drain.cancel()
        await self._wait(self._timetable.cleanup, self._run_out())
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to :func:`serve`: uvicorn would raise them again, and end with one, not with 0."""
        yield

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Take who has connected already, then listen no more."""
        welcomes = [
            asyncio.ensure_future(self._welcome(connection))
            for server in self.servers
            for listening in server.sockets
            for connection in _accept_rest(listening, self.config.backlog)
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
            async with asyncio.timeout(_FIRST_REQUEST):
                await asyncio.get_running_loop().connect_accepted_socket(
                    self._make_protocol, connection, ssl=self.config.ssl
                )

    def _make_protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def _wait(self, seconds: float, *what: Coroutine[Any, Any, object]) -> None:
        """Wait until one has ended, at most until so many seconds after the signal; then cancel all."""
        waiting = [asyncio.ensure_future(each) for each in what]
        left = self._signalled + seconds - time.monotonic()
        await asyncio.wait(waiting, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async def _run_out(self) -> None:
        """Wait until every answer has reached its client and nothing runs."""
        while self.server_state.connections or self.server_state.tasks:
            self._close_connections()
            await asyncio.sleep(_LOOK)  # uvicorn tells nobody of a connection's end
        await self._drain.wait_idle()

    def _close_connections(self) -> None:
        """Tell each connection once to close behind its answer, or now where it has nothing to answer."""
        now = time.monotonic()
        for connection in self.server_state.connections - self._told:
            if getattr(connection, "cycle", False) is None:
                # It has sent no request yet, and was opened for one.
                ready = now - self._waiting.setdefault(connection, now) > _FIRST_REQUEST
            else:
                # uvicorn would answer 500 to a WebSocket that the app has yet to accept.
                ready = getattr(connection, "handshake_complete", True)
            if ready and not _has_unread(connection):
                self._told.add(connection)
                self._waiting.pop(connection, None)
                _hold_back(connection)
                connection.shutdown()


def _hold_back(connection: Any) -> None:  # noqa: ANN401 - one of uvicorn's protocols
    """Let the rest of an answer that has begun travel in full packets: its last one tells the end, too.

    Its headers have promised a connection that stays. A proxy that sees the answer's end before the
    connection's would send the next request there, and lose it.
    """
    sock = connection.transport.get_extra_info("socket")
    if getattr(getattr(connection, "cycle", None), "response_started", False) and hasattr(socket, "TCP_CORK"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as held:
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)


def _accept_rest(listening: Any, most: int) -> list[socket.socket]:  # noqa: ANN401 - asyncio's or uvloop's socket
    """Accept who waits in the kernel's queue: to close the socket would reset those connections."""
    accepted: list[socket.socket] = []
    with socket.socket(fileno=os.dup(listening.fileno())) as waiting:
        waiting.setblocking(False)
        for _ in range(most):
            try:
                connection, _ = waiting.accept()
            except BlockingIOError:
                break  # nobody waits any more
            except OSError:
                continue  # this one has gone already
            connection.setblocking(False)
            accepted.append(connection)
    return accepted


def _has_unread(connection: Any) -> bool:  # noqa: ANN401 - one of uvicorn's protocols
    """Whether a request has come that the loop has not read yet: to close now would lose it."""
    sock = connection.transport.get_extra_info("socket")
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as peeked:
        return bool(peeked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address, so that a port in use is known before anything is opened.

    Raises:
        StartError: The address cannot be bound; the message names it and the reason.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. "
            "Choose another with --host and --port."
        ) from error
    bound.setblocking(False)
    return bound


async def serve(
    config: uvicorn.Config,
    sockets: list[socket.socket] | None,
    *,
    drain: Drain,
    timetable: Timetable,
    resources: AbstractAsyncContextManager[Mapping[str, Any] | None] | None = None,
    on_listening: Callable[[], None],
    flush: Callable[[], None],
) -> Overdue:
    """Serve until SIGINT or SIGTERM; a second signal stops waiting for what runs.

    Args:
        config: uvicorn's configuration, with the app.
        sockets: Sockets from :func:`bind`; None: uvicorn opens what the configuration names.
        drain: What is drained at the end.
        timetable: When each part of the end is over.
        resources: Entered before the first connection and left after the last one; gives the requests' state.
            None: the configuration's lifespan does that.
        on_listening: Called once requests are answered.
        flush: Called where the process has to be ended, so that the log is written.

    Returns:
        Who ends the process at the total time of the shutdown, still: let it
        :meth:`~Overdue.wait_for_threads` once the loop has closed.
    """
    overdue = Overdue(timetable.total, flush)
    try:
        async with _stopped_by_signal(overdue) as stop, resources or contextlib.nullcontext() as state:
            server = Server(
                config,
                drain=drain,
                timetable=timetable,
                state=state or {},
                on_listening=on_listening,
                begin=overdue.begin,
            )
            stop(server)
            _raise_file_limit()
            _settle_memory()
            await server.serve(sockets)
    except BaseException:
        overdue.stop()  # the start has failed
        raise
    return overdue


def url_of(bound: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a socket that listens; of a unix socket, its path."""
    if bound.family is socket.AF_UNIX:
        return f"unix:{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system grants; the usual start is 1,024."""
    try:
        import resource  # noqa: PLC0415 - not there on Windows
    except ImportError:
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _MOST_FILES if most == unlimited else min(most, _MOST_FILES)
    if now != unlimited and now < wanted:
        # The kernel may allow less than it says; then the limit stays as it was.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _settle_memory() -> None:
    """Take what the start has made out of the garbage collector's sight, and let it look less often.

    Waiting requests are many live objects and no garbage. With Python's defaults (a look after each 700 or
    2,000 new objects, and at all old ones now and then) the collector costs a fifth of the CPU time while
    thousands wait, all in vain (the case ``wait`` of the benchmarks).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@contextlib.asynccontextmanager
async def _stopped_by_signal(overdue: Overdue) -> AsyncIterator[Callable[[Server], None]]:
    """Before there is a server, a signal cancels the start; then it stops the server, the second hurries."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    server: Server | None = None
    cancelled = signalled = False

    def act(sig: signal.Signals, when: float) -> None:
        nonlocal cancelled
        logger.info("stopping", extra={"signal": sig.name})
        if server is not None:
            server.stop(when, at_once=sig is signal.SIGINT)
        elif main is not None:
            cancelled = True
            main.cancel()

    # Not the loop's own handlers: these run also while the loop is blocked, and start to count the time.
    def handle(number: int, _: FrameType | None) -> None:
        nonlocal signalled
        signalled = True
        overdue.begin()
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(act, signal.Signals(number), time.monotonic())

    def use(started: Server) -> None:
        nonlocal server
        server = started

    before = {sig: signal.signal(sig, handle) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield use
    except asyncio.CancelledError:
        if not cancelled:
            raise
    finally:
        # A signal more shall hurry what is left of the end, not kill it with another exit code.
        if not signalled:
            for sig, handler in before.items():
                signal.signal(sig, handler)
