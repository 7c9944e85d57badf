"""The embedded PostgreSQL beside the tests, and not in their loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from freeloop.database.address import Address
from freeloop.database.embedded import EmbeddedServer
from freeloop.testing.folders import STOP_TIMEOUT, make_folder, wait_until_stopped

_T = TypeVar("_T")


class OwnServer:
    """The embedded server in a temporary folder, from a loop in its own thread.

    The thread makes it usable from plain and async fixtures of any scope, since no test's loop owns
    it. Implements ``ServerPort``.

    Args:
        start_timeout: seconds that the start may take.
    """

    def __init__(self, *, start_timeout: float = 60.0) -> None:
        self._start_timeout = start_timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="own-server", daemon=True)
        self.ensured = 0
        """How often :meth:`ensure` was called."""

    def __enter__(self) -> Self:
        self._folder = make_folder()
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
            self._run(self._server.close(), STOP_TIMEOUT)
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
            timeout=STOP_TIMEOUT,
        )
        os.kill(int(found.stdout), signal.SIGKILL)
        # It may have followed its keeper already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(postgres, signal.SIGKILL)

    def _find_postgres(self) -> int:
        return int(self._pid_file.read_text().split()[0])

    def _run(self, coroutine: Coroutine[Any, Any, _T], seconds: float) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT)
        self._loop.close()
        try:
            wait_until_stopped(self._folder / "data", within=STOP_TIMEOUT)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
