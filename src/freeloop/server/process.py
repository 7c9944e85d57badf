"""One process: uvicorn with an ordered drain, and exit code 0 before one total deadline."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any, Final, Protocol

import uvicorn

from freeloop.server.overdue import Overdue
from freeloop.server.shutdown import Drain, Server, Timetable

logger = logging.getLogger("freeloop.server")
_MOST_FILES: Final = 1_000_000  # Linux refuses more by default (fs.nr_open)


class Stoppable(Protocol):
    """What a signal stops."""

    def stop(self, signalled: float, *, at_once: bool) -> None:
        """Heed a signal; see :meth:`Server.stop`."""


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
        sockets: Sockets that are bound; None: uvicorn opens what the configuration names.
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
    async with (
        stopped_by_signal(timetable, flush) as (overdue, stop),
        resources or contextlib.nullcontext() as state,
    ):
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
    return overdue


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
async def stopped_by_signal(
    timetable: Timetable, flush: Callable[[], None]
) -> AsyncIterator[tuple[Overdue, Callable[[Stoppable], None]]]:
    """Before there is a server, a signal cancels the start; then it stops the server, the second hurries.

    Args:
        timetable: When each part of the end is over.
        flush: Called where the process has to be ended, so that the log is written.

    Returns:
        Who ends the process where it does not end in time; and what to call with the server.
    """
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    server: Stoppable | None = None
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
        overdue.heed_signal()
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(act, signal.Signals(number), time.monotonic())

    def use(started: Stoppable) -> None:
        nonlocal server
        server = started

    overdue = Overdue(timetable.total, flush)
    before: dict[signal.Signals, Any] = {}
    try:
        for sig in (signal.SIGINT, signal.SIGTERM):
            before[sig] = signal.signal(sig, handle)
        yield overdue, use
    except BaseException as error:
        if not (cancelled and isinstance(error, asyncio.CancelledError)):
            overdue.stop()  # the start has failed
            raise
    finally:
        # A signal more shall hurry what is left of the end, not kill it with another exit code.
        if not signalled:
            for sig, handler in before.items():
                signal.signal(sig, handler)
