"""The folders of PostgreSQL servers that tests start."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from freeloop.database.embedded.locks import try_exclusive

STOP_TIMEOUT: Final = 30.0
"""Seconds that a server may take to end."""

_POLL: Final = 0.01


def make_folder() -> Path:
    """Make a folder for a server: with a short path, and open to whoever it runs as."""
    # Not pytest's folder: that is closed to others, and PostgreSQL runs as somebody else where the tests
    # run as root; directly in /tmp, since the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="freeloop-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def wait_until_stopped(data_dir: Path, *, within: float = STOP_TIMEOUT) -> None:
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
