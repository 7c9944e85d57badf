"""A real PgBouncer in front of a PostgreSQL, that lives as long as a test needs it."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from freeloop.database.embedded.account import choose_account
from freeloop.testing.folders import make_folder

START_TIMEOUT = 20


class PgBouncer:
    """On a free port of loopback, for all databases of one server; it refuses root, and runs as that does.

    Args:
        program: its path.
        server: the PostgreSQL behind it, on a socket and without passwords.
        settings: of its section [pgbouncer]; they win over those that are here.
    """

    def __init__(self, program, server, **settings):
        self._program = program
        self._server = server
        self._settings = {
            "pool_mode": "transaction",
            "default_pool_size": 2,
            "max_client_conn": 200,
            "auth_type": "trust",
            "listen_addr": "127.0.0.1",
            "unix_socket_dir": "",
        } | settings

    def __enter__(self):
        self._folder = make_folder()
        try:
            self.port = self._settings["listen_port"] = find_free_port()
            self._settings["auth_file"] = self._folder / "users"
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder)

    def address(self, address, **changes):
        """The same database through PgBouncer, for somebody who knows what stands there."""
        pooled = replace(address, host="127.0.0.1", port=self.port, pooler=self._settings["pool_mode"])
        return replace(pooled, **changes)

    def start(self):
        lines = ["[databases]", f"* = host={self._server.host} port={self._server.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in self._settings.items()]
        (self._folder / "pgbouncer.ini").write_text("\n".join(lines))
        self._settings["auth_file"].write_text(f'"{self._server.user}" ""')
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, "-q", self._folder / "pgbouncer.ini"],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **as_account(),
            )
        until = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.01)
        self.stop()
        raise RuntimeError(f"PgBouncer did not start:\n{(self._folder / 'log').read_text()[-2000:]}")

    def stop(self):
        """End it at once, with all its connections."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
                return


def as_account():
    account = choose_account([])
    if account.uid == os.geteuid():
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def find_free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def pgbouncer_program():
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no PgBouncer: install Debian's package 'pgbouncer'")
    return program


@pytest.fixture(scope="module")
def bouncer(pgbouncer_program, postgres):
    """One in transaction mode, with two connections to PostgreSQL for each database."""
    with PgBouncer(pgbouncer_program, postgres) as running:
        yield running
