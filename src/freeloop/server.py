"""uvicorn, run our way: resources open before the first connection, close after the last, exit code 0."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, cast

import uvicorn
from fastapi import FastAPI

from freeloop.errors import StartError

logger = logging.getLogger("freeloop.server")
_MOST_FILES: Final = 1_000_000  # Linux refuses more by default (fs.nr_open)
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]


class Server(uvicorn.Server):
    """A uvicorn server whose lifespan is run around it, by :func:`serve`."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        state: Mapping[str, Any],
        on_listening: Callable[[], None],
        on_drain: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_listening = on_listening
        self._on_drain = on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, with the state that the lifespan has yielded."""
        self.lifespan.state.update(self._state)
        await super().startup(sockets)
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the app first, so that streams end by themselves and nobody waits for them."""
        self._on_drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to :func:`serve`: uvicorn would raise them again, and end with one, not with 0."""
        yield


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
            "Choose another with --host and --port (FREELOOP_HOST, FREELOOP_PORT)."
        ) from error
    bound.setblocking(False)
    return bound


async def serve(
    app: FastAPI,
    bound: socket.socket,
    *,
    shutdown_timeout: float,
    on_listening: Callable[[str], None],
    on_drain: Callable[[Mapping[str, Any]], None],
) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; a second signal stops waiting for running requests.

    Args:
        app: The application; its lifespan yields the state for requests.
        bound: A socket from :func:`bind`.
        shutdown_timeout: Seconds that running requests may take to finish.
        on_listening: Called with the URL once requests are answered.
        on_drain: Called with the state when the shutdown begins.
    """
    async with _stopped_by_signal() as stop:
        # Starlette lets a lifespan yield nothing; ours yields the state.
        lifespan = cast("Lifespan", app.router.lifespan_context)
        async with lifespan(app) as state:
            config = uvicorn.Config(
                app,
                lifespan="off",
                loop="uvloop",
                http="httptools",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=4096,
                timeout_graceful_shutdown=cast("int", shutdown_timeout),  # a float is a time limit too
            )
            server = Server(
                config,
                state=state,
                on_listening=lambda: on_listening(_url_of(bound)),
                on_drain=lambda: on_drain(state),
            )
            stop(server)
            _raise_file_limit()
            _settle_memory()
            await server.serve([bound])


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


def _url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def _stopped_by_signal() -> AsyncIterator[Callable[[Server], None]]:
    """Before there is a server, a signal cancels the start; then it stops the server, the second hurries."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    server: Server | None = None
    cancelled = False

    def handle(sig: signal.Signals) -> None:
        nonlocal cancelled
        logger.info("stopping", extra={"signal": sig.name})
        if server is None:
            cancelled = True
            if main is not None:
                main.cancel()
        elif server.should_exit:
            server.force_exit = True
        else:
            server.should_exit = True

    def use(started: Server) -> None:
        nonlocal server
        server = started

    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, handle, sig)
    try:
        yield use
    except asyncio.CancelledError:
        if not cancelled:
            raise
    finally:
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(sig)
