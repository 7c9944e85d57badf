"""Any other PostgreSQL beside the tests, as somebody else would run it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from freeloop.database.address import Address
from freeloop.database.embedded.account import choose_account
from freeloop.testing.folders import STOP_TIMEOUT, make_folder
from freeloop.testing.programs import bring_near

_POLL: Final = 0.01
_STARTS: Final = 3


class GivenServer:
    """A PostgreSQL of any version as somebody else would run it: on TCP and a socket, with passwords.

    A superuser ``postgres`` needs no password on the socket, and everybody needs one on TCP
    (SCRAM-SHA-256). As root, it runs as an unprivileged user that exists, as the embedded one does.

    Args:
        programs: folder with ``initdb`` and ``postgres``; see :mod:`freeloop.testing.programs`.
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
        start_timeout: float = 60.0,
    ) -> None:
        self._programs = programs
        self._certificate = certificate
        self._start_timeout = start_timeout
        self.password = password
        self.port = 0
        """The TCP port, on 127.0.0.1 and, where the system has it, on ::1."""

    def __enter__(self) -> Self:
        self.folder = make_folder()
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

    def stop(self) -> None:
        """End it now, as a crash would, without a checkpoint; idempotent. Blocks shortly."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(STOP_TIMEOUT)

    @property
    def address(self) -> Address:
        """The socket, the superuser and the database ``postgres``."""
        return Address(host=str(self.folder), port=self.port, user="postgres", database="postgres")

    def _start(self) -> subprocess.Popen[bytes]:
        self._programs = bring_near(self._programs, self._account, self.folder)
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        os.chown(data, self._account.uid, self._account.gid)
        # A socket's folder must be writable for the server; the rest of what lies there is not its own.
        os.chown(self.folder, self._account.uid, self._account.gid)
        self._fill(data)
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

    def _fill(self, data: Path) -> None:
        """Make the folder that the server starts with."""
        self._write(self.folder / "password", self.password)
        self._run(
            *("initdb", "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={self.folder / 'password'}"),
        )

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


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT / 3)
            return
