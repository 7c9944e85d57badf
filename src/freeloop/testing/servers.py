"""A PostgreSQL of our own, that runs beside the tests and not in their loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from freeloop.database.address import Address
from freeloop.database.embedded import EmbeddedServer

_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 30.0

_T = TypeVar("_T")


class OwnServer:
    """The embedded server in a temporary folder, from a loop in its own thread.

    The thread makes it usable from plain and async fixtures of any scope, since no test's loop owns
    it. Implements ``ServerPort``.

    Args:
        start_timeout: seconds that the start may take.
    """

    def __init__(self, *, start_timeout: float = _START_TIMEOUT) -> None:
        self._start_timeout = start_timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="own-server", daemon=True)
        self.ensured = 0
        """How often :meth:`ensure` was called."""

    def __enter__(self) -> Self:
        # Not pytest's folder: that is closed to others, and PostgreSQL runs as somebody else where
        # the tests run as root; directly in /tmp, since the path of a socket must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="freeloop-", dir="/tmp"))
        self._folder.chmod(0o755)
        self._thread.start()
        self._server = EmbeddedServer(self._folder / "data", start_timeout=self._start_timeout)
        try:
            self.address: Address = self._run(self._server.start(), self._start_timeout)
            (self._pid_file,) = self._folder.rglob("postmaster.pid")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._server.close(), _STOP_TIMEOUT)
            self._wait_for_the_end()
        finally:
            self._end()

    async def ensure(self) -> None:
        """Start the server again where it is down."""
        self.ensured += 1
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._server.ensure(), self._loop))

    def kill(self) -> None:
        """End PostgreSQL with SIGKILL, as the kernel does where memory runs out; its keeper restarts it."""
        os.kill(self._find_postgres(), signal.SIGKILL)

    def kill_with_keeper(self) -> None:
        """End PostgreSQL and its keeper: it stays down until :meth:`ensure`. Blocks shortly."""
        postgres = self._find_postgres()
        found = subprocess.run(  # noqa: S603 - fixed words and a number
            ["ps", "-o", "ppid=", "-p", str(postgres)],  # noqa: S607 - every system has its own place for it
            capture_output=True,
            check=True,
            timeout=_STOP_TIMEOUT,
        )
        os.kill(int(found.stdout), signal.SIGKILL)
        # It may have followed its keeper already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(postgres, signal.SIGKILL)

    def _wait_for_the_end(self) -> None:
        """Wait until PostgreSQL has stopped: closing only gives the lease back, and its folder goes next."""
        until = time.monotonic() + _STOP_TIMEOUT
        while self._runs() and time.monotonic() < until:
            time.sleep(0.02)

    def _runs(self) -> bool:
        # A server that was killed leaves its file behind.
        try:
            os.kill(self._find_postgres(), 0)
        except (OSError, IndexError):
            return False
        return True

    def _find_postgres(self) -> int:
        return int(self._pid_file.read_text().split()[0])

    def _run(self, coroutine: Coroutine[Any, Any, _T], seconds: float) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_TIMEOUT)
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)
