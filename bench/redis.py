"""The Redis of the peers that need one: Debian's, on the load generator's core."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.machine import read_version
from bench.servers import end, wait_until

_SERVER = "redis-server"


@contextmanager
def open_redis(folder: Path) -> Iterator[str | None]:
    """Start Redis on the caller's core, with Debian's settings: snapshots only; it ends with the block.

    Returns:
        Its URL; None where there is no Redis.
    """
    command = shutil.which(_SERVER)
    if command is None:
        yield None
        return
    home = folder / "redis"
    home.mkdir()
    path = home / "socket"
    # What Debian's redis.conf has, minus a port.
    options = ("--save", "3600 1 300 100 60 10000", "--appendonly", "no", "--dir", str(home))
    process = subprocess.Popen(
        [command, "--port", "0", "--unixsocket", str(path), *options], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _answers(path), timeout=10, expected="Redis to listen")
        yield f"unix://{path}"
    finally:
        end(process)


def _answers(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as trial:
        return path.exists() and trial.connect_ex(str(path)) == 0


def find_version() -> str | None:
    """Return the version of Redis; None where there is none."""
    return read_version(_SERVER, "--version")
