"""One worker process: what its supervisor knows of it, and what runs in it beside its target."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from socket import socket
from typing import TypeAlias

from freeloop.server.backoff import Backoff

logger = logging.getLogger("freeloop.workers")
Target: TypeAlias = Callable[[list[socket], Callable[[], None]], None]
_spawn = multiprocessing.get_context("spawn")  # a fork would inherit loops, threads and connections


@dataclass(eq=False, slots=True)
class Worker:
    """A worker, seen by its supervisor.

    Attributes:
        process: The process, and ``pid`` its id.
        pipe: Carries one message, when the worker is ready; then it is closed.
        backoff: When another one takes its place, should it end.
        generation: How many restarts had been asked for when it started.
        replaces: The worker that stops once this one is ready.
        deadline: When it is killed: at first unless it is ready, later unless it has ended; else None.
        ready: Whether it has ever been ready.
        stopping: Whether it has been asked to stop.
        overdue: Whether it has been killed at its deadline.
    """

    process: SpawnProcess
    pid: int
    pipe: connection.Connection
    backoff: Backoff
    generation: int
    replaces: Worker | None
    deadline: float | None
    ready: bool = False
    stopping: bool = False
    overdue: bool = False

    def read_ready(self) -> bool:
        """Read the message, or that there will be none; return whether the worker has become ready."""
        if self.pipe.closed or not self.pipe.poll():
            return False
        with contextlib.suppress(EOFError, OSError), self.pipe:
            self.pipe.recv_bytes()
            self.ready = True
        return self.ready

    def send(self, number: signal.Signals) -> None:
        """Send a signal that stops; a worker that starts has SIGINT blocked, or nobody to handle it."""
        os.kill(self.pid, number if self.ready else signal.SIGTERM)

    def close(self) -> None:
        """Forget a process that has ended."""
        self.process.close()
        self.pipe.close()


def spawn(
    target: Target, sockets: list[socket], stop_timeout: float
) -> tuple[SpawnProcess, int, connection.Connection]:
    """Start a process that runs the target; return it, its id, and the pipe that says when it is ready.

    Raises:
        OSError: The system has no memory, process or descriptor left.
    """
    # It unblocks SIGINT when it starts, so it must run before that is blocked.
    resource_tracker.ensure_running()
    reader, writer = _spawn.Pipe(duplex=False)
    process = _spawn.Process(
        target=_run, args=(target, sockets, writer, stop_timeout), name="freeloop-worker"
    )
    # Until it has left our session, a Ctrl-C reaches the worker, too: blocked here, it is blocked there.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    except BaseException:
        reader.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        writer.close()
    assert process.pid is not None  # noqa: S101 - it has started
    return process, process.pid, reader


def describe(code: int) -> str:
    """Say how a process ended, from its exit code as :mod:`multiprocessing` gives it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"


def _run(target: Target, sockets: list[socket], pipe: connection.Connection, stop_timeout: float) -> None:
    # A session of its own: the terminal's signals go to the supervisor alone, which passes them on once.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # forgets one that came before
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_supervisor, args=(stop_timeout,), daemon=True).start()

    def tell_ready() -> None:
        with contextlib.suppress(OSError), pipe:  # told already, or nobody is left to be told
            pipe.send_bytes(b"ready")

    target(sockets, tell_ready)


def _follow_supervisor(stop_timeout: float) -> None:
    """Stop this process in order once its supervisor has gone without a word; kill it if it does not stop."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None  # noqa: S101 - a worker has one
    supervisor.join()
    logger.error("the supervisor has gone: worker %d stops", os.getpid())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(stop_timeout)
    os.kill(os.getpid(), signal.SIGKILL)
