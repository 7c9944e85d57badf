"""The client side: hold the lease, and make sure that a keeper lives."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import asyncpg

from freeloop.database.address import Address
from freeloop.database.embedded.binaries import find_binaries, read_major
from freeloop.database.embedded.launch import launch_keeper
from freeloop.database.embedded.locks import FileLock, read_state, try_exclusive, try_shared
from freeloop.database.embedded.place import PORT, Place, prepare_folder
from freeloop.errors import EmbeddedServerError

_T = TypeVar("_T")

_POLL: Final = 0.005  # seconds between looks at what gives no signal
_SLICE: Final = 0.05  # seconds after which a longer wait looks whether its caller has gone
# The keeper has PostgreSQL stop within 20 s, the last step by force.
_END_TIMEOUT: Final = 25.0
_SILENT_KEEPERS: Final = 3
_USER: Final = "postgres"
_DATABASE: Final = "freeloop"

# What a server answers that starts, stops, or was killed a moment ago; the last three: two processes make
# the database at once.
_NOT_YET: Final = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DuplicateDatabaseError,
    asyncpg.UniqueViolationError,
    asyncpg.ObjectInUseError,
)


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long a blocking part may take (a point in monotonic time), and whether its caller has gone."""

    deadline: float
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def remaining(self) -> float:
        return 0.0 if self.gone.is_set() else max(0.0, self.deadline - time.monotonic())


class EmbeddedServer:
    """One process's share in the embedded PostgreSQL. Implements ``ServerPort``.

    All processes that name the same folder use the same server. It ends when the last of them has closed
    its share or has ended. An object made before ``os.fork()`` belongs to the parent: make a new one in the
    child (see :class:`~freeloop.database.embedded.locks.FileLock`).

    Args:
        data_dir: folder that holds the data; made where it is missing.
        start_timeout: seconds that :meth:`start` and :meth:`ensure` may take, each.
    """

    def __init__(self, data_dir: Path, *, start_timeout: float = 60.0) -> None:
        self._data_dir = data_dir
        self._timeout = start_timeout
        self._lease: FileLock | None = None
        self._one_at_a_time = threading.Lock()

    async def start(self) -> Address:
        """Take the lease, start the server where it does not run, and make its database where it is missing.

        Returns:
            The socket's folder, the superuser ``postgres`` and the database ``freeloop``.

        Raises:
            EmbeddedServerError: The server cannot be started, or was not ready in time.
        """
        patience = self._patience()
        try:
            address = await self._in_thread(lambda: self._hold(patience), patience)
            await self._open_database(address, patience)
        except BaseException:
            # Also when cancelled: the thread may have taken the lease in the meantime.
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._drop, self._patience())
            raise
        return address

    async def ensure(self) -> None:
        """Start the keeper again where it was killed, and wait until the server accepts connections.

        Cheap where all is well. To be called between :meth:`start` and :meth:`close`.

        Raises:
            EmbeddedServerError: The server cannot be started, or was not ready within the start timeout; or
                the lease is not held.
        """
        patience = self._patience()
        await self._in_thread(lambda: self._bring_up(patience), patience)

    async def close(self) -> None:
        """Give the lease back; where it was the last one, wait until the server has stopped. Idempotent."""
        patience = _Patience(time.monotonic() + _END_TIMEOUT)
        await self._in_thread(lambda: self._release(patience), patience)

    @cached_property
    def _place(self) -> Place:
        # Only read in threads: it asks the file system where links lead.
        return Place.below(self._data_dir)

    def _patience(self) -> _Patience:
        return _Patience(time.monotonic() + self._timeout)

    async def _in_thread(self, work: Callable[[], _T], patience: _Patience) -> _T:
        def run() -> _T:
            with self._one_at_a_time:
                return work()

        try:
            # A limiter of its own: threads that other code keeps busy must not delay the way back to a
            # database. A cancelled caller leaves at once, and tells the thread.
            return await anyio.to_thread.run_sync(
                run, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except BaseException:
            patience.gone.set()
            raise

    def _hold(self, patience: _Patience) -> Address:
        with self._readable_errors():
            place = self._place
            if not place.folder.is_dir():
                prepare_folder(place, read_major(find_binaries()))
            # Not free while a keeper stops: it does so only when nobody was left, and lets nobody in until
            # it is gone. The wait is for its end.
            while self._lease is None:
                self._lease = try_shared(place.lease)
                if self._lease is None:
                    time.sleep(min(self._slice(patience), _POLL))
        self._bring_up(patience)
        return Address(host=str(place.socket_folder), port=PORT, user=_USER, database=_DATABASE)

    def _bring_up(self, patience: _Patience) -> None:
        if self._lease is None:
            raise EmbeddedServerError(
                f"the embedded PostgreSQL in {self._data_dir} is closed here. Call start() first."
            )
        silent = 0
        with self._readable_errors():
            while True:
                lock = try_exclusive(self._place.keeper)
                if lock is not None:
                    with lock:
                        if launch_keeper(self._place, lock, lambda: self._slice(patience)):
                            return
                    silent += 1
                    if silent == _SILENT_KEEPERS:
                        raise EmbeddedServerError(
                            f"{silent} keepers, started with {sys.executable!r}, ended without an answer. "
                            "Expected the path of a Python interpreter, and that nobody kills it. "
                            f"{self._place.tail()}"
                        )
                elif read_state(self._place.keeper).phase == "ready" and _listens(self._place.socket):
                    return
                time.sleep(min(self._slice(patience), _POLL))

    async def _open_database(self, address: Address, patience: _Patience) -> None:
        while True:
            try:
                await _connect_or_create(address, max(0.1, patience.remaining))
            except _NOT_YET:
                await anyio.sleep(_POLL)
                await self._in_thread(lambda: self._slice(patience), patience)
                await self._in_thread(lambda: self._bring_up(patience), patience)
            else:
                return

    def _slice(self, patience: _Patience) -> float:
        """Give the seconds to wait until this is asked again; raise where the time is over."""
        if patience.remaining == 0:
            state = read_state(self._place.keeper)
            raise EmbeddedServerError(
                f"the embedded PostgreSQL in {self._place.folder} was not ready in time (keeper "
                f"{state.keeper}: {state.phase or 'not started'}). Raise FREELOOP_START_TIMEOUT if it only "
                "needs longer. "
                f"{self._place.tail()}"
            )
        return min(patience.remaining, _SLICE)

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EmbeddedServerError(
                f"the folder of the embedded PostgreSQL, {self._place.folder}, cannot be used: {error}. Set "
                "FREELOOP_DATA_DIR to a folder that this user can write to."
            ) from error

    def _drop(self) -> None:
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def _release(self, patience: _Patience) -> None:
        if self._lease is None:
            return
        self._drop()
        with suppress(OSError):  # the folder was removed: nothing to wait for
            while self._ends() and patience.remaining > 0:
                time.sleep(_POLL)

    def _ends(self) -> bool:
        """Tell whether a keeper lives that nobody needs any more."""
        if _is_free(try_exclusive, self._place.keeper):
            return False
        if _is_free(try_exclusive, self._place.lease):
            return True  # the keeper has yet to notice
        # Neither lock can be had: the keeper holds it. The shared one can: somebody else does.
        return not _is_free(try_shared, self._place.lease)


def _is_free(take: Callable[[Path], FileLock | None], path: Path) -> bool:
    lock = take(path)
    if lock is not None:
        lock.close()
    return lock is not None


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except (BlockingIOError, TimeoutError):  # its queue is full: it is there
            return True
        except OSError:
            return False
    return True


async def _connect_or_create(address: Address, seconds: float) -> None:
    """Open one connection to see that all is well, and make the database where it is missing."""
    try:
        connection = await asyncpg.connect(**address.arguments(), timeout=seconds)
    except asyncpg.InvalidCatalogNameError:
        connection = await asyncpg.connect(
            **replace(address, database="postgres").arguments(), timeout=seconds
        )
        try:
            await connection.execute(f'CREATE DATABASE "{address.database}"', timeout=seconds)
        finally:
            await connection.close(timeout=seconds)
    else:
        await connection.close(timeout=seconds)
